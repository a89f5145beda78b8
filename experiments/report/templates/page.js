function hear(clip) {
  const silent = clip.muted;
  document.querySelectorAll('video').forEach(v => v.muted = true);
  clip.muted = !silent;
  clip.currentTime = 0;
  clip.play();
}
document.querySelectorAll('video').forEach(v => {
  v.onclick = () => hear(v);
  v.onkeydown = e => { if (e.key == 'Enter') hear(v) };
});
