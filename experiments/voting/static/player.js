// Two clips in step, with the sound of one of them. A clip counts as played once its sound ran to the end.

const DRIFT_S = 0.06; // beyond it the muted clip is moved
const END_S = 0.15; // of a clip that may be missing for it to count as played

export class Player {
  constructor(left, right, changed) {
    this.clips = { left, right };
    this.changed = changed;
    this.reset();
    for (const side of ["left", "right"]) {
      const clip = this.clips[side];
      clip.addEventListener("ended", () => this.ended(side));
      for (const name of ["play", "pause", "timeupdate"]) clip.addEventListener(name, () => this.changed());
    }
    const step = () => { this.keepInStep(); requestAnimationFrame(step); };
    requestAnimationFrame(step);
  }

  reset() {
    this.on = "left";
    this.played = { left: false, right: false };
    this.ready = false;
    this.wanted = false; // play was asked for before the clips were there
  }

  // Blobs, so that both start at once and a lost connection interrupts nothing.
  async show(leftBlob, rightBlob) {
    await Promise.all(Object.entries({ left: leftBlob, right: rightBlob }).map(([side, blob]) => {
      const clip = this.clips[side];
      if (clip.src) URL.revokeObjectURL(clip.src);
      clip.src = URL.createObjectURL(blob);
      return new Promise((resolve, reject) => {
        clip.addEventListener("loadeddata", resolve, { once: true });
        clip.addEventListener("error", reject, { once: true });
      });
    }));
    this.ready = true;
    this.hear("left");
    if (this.wanted) this.start("left");
  }

  get other() { return this.on === "left" ? "right" : "left"; }
  get playing() { return !this.clips[this.on].paused && !this.clips[this.on].ended; }
  get allPlayed() { return this.played.left && this.played.right; }

  get share() {
    const clip = this.clips[this.on];
    return clip.duration ? clip.currentTime / clip.duration : 0;
  }

  hear(side) {
    this.on = side;
    this.clips[side].muted = false;
    this.clips[this.other].muted = true;
    this.from = this.clips[side].currentTime;
    this.changed();
  }

  toggle() { this.playing ? this.pause() : this.play(); }

  pause() { for (const clip of Object.values(this.clips)) clip.pause(); }

  play() {
    if (!this.ready) { this.wanted = true; return; }
    const clip = this.clips[this.on];
    if (clip.ended || clip.currentTime === 0 || clip.currentTime > clip.duration - END_S) this.start(this.on);
    else this.go();
  }

  // From the beginning, with this side's sound.
  start(side) {
    if (!this.ready) return;
    for (const clip of Object.values(this.clips)) clip.currentTime = 0;
    this.hear(side);
    this.from = 0;
    this.go();
  }

  go() {
    this.from = this.clips[this.on].currentTime;
    for (const clip of Object.values(this.clips)) clip.play().catch(() => this.changed());
  }

  ended(side) {
    if (side !== this.on) return;
    if (this.from <= END_S) this.played[side] = true;
    const unheard = ["left", "right"].find((one) => !this.played[one]);
    if (unheard) this.start(unheard);
    this.changed();
  }

  keepInStep() {
    if (!this.playing) return;
    const lead = this.clips[this.on];
    const muted = this.clips[this.other];
    if (!muted.ended && Math.abs(muted.currentTime - lead.currentTime) > DRIFT_S) muted.currentTime = lead.currentTime;
    this.changed();
  }
}
