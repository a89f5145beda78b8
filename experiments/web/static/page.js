// "Play A, then B": the clips of one seed one after the other, so that both are heard.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-nava-both]");
  if (!button) return;
  const media = [...button.closest(".nava-slot").querySelectorAll("video, audio")];
  document.querySelectorAll("video, audio").forEach((one) => one.pause());
  for (const one of media) {
    one.currentTime = 0;
    await one.play();
    await new Promise((done) => {
      one.addEventListener("ended", done, { once: true });
      one.addEventListener("pause", done, { once: true });
    });
    if (!one.ended) return;
  }
});
