// A canvas that shows an image from its tiles, pans and zooms with mouse, touch and keyboard, and draws overlays on it.

import { Pyramid } from "./tiles.js";

const STEP = 1.3, FAR = 40;

export class Viewer {
  /** `asked` may hold `pick(x, y)`, `arrow(dx, dy)` (true: dealt with), `moved(viewer)`, `divided(share)`, `failed(error)`. */
  constructor(figure, asked) {
    this.figure = figure;
    this.canvas = figure.querySelector("canvas");
    this.asked = asked;
    this.image = this.base = this.later = null;
    this.layers = [];
    this.divider = 0.5;
    this.scale = 1;
    this.centre = [0, 0];
    this.fitted = true;
    this.pointers = new Map();
    this.listen();
    new ResizeObserver(() => (this.fitted ? this.fit() : this.draw())).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  get size() {
    return [this.canvas.clientWidth, this.canvas.clientHeight];
  }

  show(image) {
    this.base?.close();
    this.later?.close();
    this.later = null;
    this.image = image;
    this.base = image && this.pyramid(image);
    this.fit();
  }

  /** Put the image of a later date beside the divider; null takes it away. */
  compare(image) {
    this.later?.close();
    this.later = image && this.pyramid(image);
    this.draw();
  }

  pyramid(image) {
    return new Pyramid(image, () => this.draw(), (error) => this.asked.failed?.(error));
  }

  // ---- where things are

  toScreen([x, y]) {
    const [width, height] = this.size;
    return [(x - this.centre[0]) * this.scale + width / 2, (y - this.centre[1]) * this.scale + height / 2];
  }

  toImage([x, y]) {
    const [width, height] = this.size;
    return [(x - width / 2) / this.scale + this.centre[0], (y - height / 2) / this.scale + this.centre[1]];
  }

  get smallest() {
    if (!this.image) return 1;
    const [width, height] = this.size;
    return Math.max(1e-6, Math.min(width / this.image.width, height / this.image.height));
  }

  fit() {
    if (this.image) {
      this.scale = this.smallest;
      this.centre = [this.image.width / 2, this.image.height / 2];
    }
    this.fitted = true;
    this.settle();
  }

  zoom(factor, at = this.size.map((side) => side / 2)) {
    if (!this.image) return;
    const before = this.toImage(at);
    this.scale = Math.min(Math.max(FAR, this.smallest), Math.max(this.smallest, this.scale * factor));
    const after = this.toImage(at);
    this.centre = this.centre.map((value, axis) => value + before[axis] - after[axis]);
    this.fitted = this.scale <= this.smallest * 1.0001;
    this.settle();
  }

  pan(dx, dy) {
    this.centre = [this.centre[0] - dx / this.scale, this.centre[1] - dy / this.scale];
    this.settle();
  }

  /** Bring a box of the image into sight, without coming nearer than needed. */
  reveal([x1, y1, x2, y2]) {
    const [width, height] = this.size, [left, top] = this.toScreen([x1, y1]), [right, down] = this.toScreen([x2, y2]);
    const small = Math.max(right - left, down - top) < 14;
    if (left >= 0 && top >= 0 && right <= width && down <= height && !small) { this.draw(); return; }
    const fits = Math.min(width / (x2 - x1 + 1e-6), height / (y2 - y1 + 1e-6)) * 0.5;
    this.scale = Math.min(FAR, Math.max(this.smallest, small ? Math.min(fits, this.scale * 8) : Math.min(this.scale, fits)));
    this.centre = [(x1 + x2) / 2, (y1 + y2) / 2];
    this.fitted = false;
    this.settle();
  }

  /** Take another viewer's place, as a share of the image. */
  follow(other) {
    if (!this.image || !other.image) return;
    this.scale = other.scale * this.smallest / other.smallest;
    this.centre = [other.centre[0] / other.image.width * this.image.width, other.centre[1] / other.image.height * this.image.height];
    this.fitted = other.fitted;
    this.settle(false);
  }

  settle(tell = true) {
    if (this.image) {
      const sides = [this.image.width, this.image.height], size = this.size;
      this.centre = this.centre.map((value, axis) => {
        const half = size[axis] / 2 / this.scale;
        return half * 2 >= sides[axis] ? sides[axis] / 2 : Math.min(sides[axis] - half, Math.max(half, value));
      });
    }
    // A finger moves the page as long as the whole image is seen, and the image once it is enlarged.
    this.canvas.style.touchAction = this.fitted ? "pan-y" : "none";
    this.draw();
    if (tell) this.asked.moved?.(this);
  }

  // ---- drawing

  draw() {
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.paint(); });
  }

  paint() {
    const density = Math.min(3, devicePixelRatio || 1), [width, height] = this.size;
    const wide = Math.max(1, Math.round(width * density)), high = Math.max(1, Math.round(height * density));
    if (this.canvas.width !== wide || this.canvas.height !== high) Object.assign(this.canvas, { width: wide, height: high });
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, wide, high);
    if (!this.image || !width || !height) return;
    const place = (x, y) => this.toScreen([x, y]).map((value) => value * density);
    const part = [...this.toImage([0, 0]), ...this.toImage([width, height])];
    context.imageSmoothingEnabled = this.scale * density < 4;
    this.base.draw(context, part, place, this.scale * density);
    if (this.later) this.paintLater(context, part, place, density);
    context.imageSmoothingEnabled = true;
    const view = { context, place, density, scale: this.scale * density, image: this.image };
    for (const layer of this.layers) layer(view);
    if (this.later) this.paintDivider(context, density);
  }

  get dividerAt() {
    return this.size[0] * this.divider;
  }

  paintLater(context, part, place, density) {
    const along = this.later.image.width / this.image.width, down = this.later.image.height / this.image.height;
    const theirs = (x, y) => place(x / along, y / down);
    context.save();
    context.beginPath();
    context.rect(this.dividerAt * density, 0, this.canvas.width, this.canvas.height);
    context.clip();
    this.later.draw(context, [part[0] * along, part[1] * down, part[2] * along, part[3] * down], theirs, this.scale * density / along);
    context.restore();
  }

  paintDivider(context, density) {
    const x = Math.round(this.dividerAt * density), y = this.canvas.height / 2;
    context.fillStyle = "#000a";
    context.fillRect(x - 2 * density, 0, 4 * density, this.canvas.height);
    context.fillStyle = "#fff";
    context.fillRect(x - density, 0, 2 * density, this.canvas.height);
    context.beginPath();
    context.arc(x, y, 15 * density, 0, 2 * Math.PI);
    context.fill();
    context.strokeStyle = "#16191d";
    context.lineWidth = 2 * density;
    context.beginPath();
    for (const way of [-1, 1]) {
      context.moveTo(x + way * 4 * density, y - 5 * density);
      context.lineTo(x + way * 9 * density, y);
      context.lineTo(x + way * 4 * density, y + 5 * density);
    }
    context.stroke();
  }

  // ---- hands

  listen() {
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const near = (point, touch) => this.later && Math.abs(point[0] - this.dividerAt) < (touch ? 24 : 12);
    this.canvas.addEventListener("pointerdown", (event) => {
      if (!this.image || event.button > 0) return;
      this.canvas.setPointerCapture(event.pointerId);
      const point = at(event);
      this.pointers.set(event.pointerId, point);
      this.start = this.pointers.size === 1 ? point : null;
      this.dividing = this.pointers.size === 1 && near(point, event.pointerType === "touch");
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const point = at(event), before = this.pointers.get(event.pointerId);
      this.canvas.classList.toggle("divide", Boolean(this.dividing || near(point, false)));
      if (!before) return;
      this.pointers.set(event.pointerId, point);
      if (this.dividing) this.divide(point[0] / this.size[0]);
      else if (this.pointers.size === 1) this.drag(point, before, event);
      else this.pinch(event.pointerId, point, before);
    });
    const up = (event) => {
      const point = this.pointers.get(event.pointerId);
      this.pointers.delete(event.pointerId);
      this.canvas.classList.remove("drag");
      if (event.type === "pointerup" && point && this.start && !this.dividing) this.click(this.toImage(this.start));
      if (!this.pointers.size) { this.start = null; this.dividing = false; }
    };
    this.canvas.addEventListener("pointerup", up);
    this.canvas.addEventListener("pointercancel", up);
    this.canvas.addEventListener("wheel", (event) => {
      if (!this.image) return;
      event.preventDefault();
      const pixels = event.deltaY * (event.deltaMode === 1 ? 30 : event.deltaMode === 2 ? 300 : 1);
      this.zoom(Math.exp(-Math.max(-200, Math.min(200, pixels)) / 400), at(event));
    }, { passive: false });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  drag(point, before, event) {
    if (this.start && Math.hypot(point[0] - this.start[0], point[1] - this.start[1]) > (event.pointerType === "touch" ? 9 : 4)) {
      this.start = null;
      this.canvas.classList.add("drag");
    }
    if (!this.start) this.pan(point[0] - before[0], point[1] - before[1]);
  }

  pinch(id, point, before) {
    const other = [...this.pointers].find(([key]) => key !== id)[1];
    const apart = (place) => Math.max(1, Math.hypot(place[0] - other[0], place[1] - other[1]));
    const middle = [(point[0] + other[0]) / 2, (point[1] + other[1]) / 2];
    this.pan((point[0] - before[0]) / 2, (point[1] - before[1]) / 2);
    this.zoom(apart(point) / apart(before), middle);
  }

  click([x, y]) {
    if (x >= 0 && y >= 0 && x < this.image.width && y < this.image.height) this.asked.pick?.(x, y, this);
  }

  divide(share) {
    this.divider = Math.min(1, Math.max(0, share));
    this.asked.divided?.(this.divider);
    this.draw();
  }

  key(event) {
    if (!this.image || event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (arrow) {
      if (event.shiftKey || !this.asked.arrow?.(...arrow)) this.pan(-arrow[0] * 60, -arrow[1] * 60);
    } else if (event.key === "+" || event.key === "=") this.zoom(STEP);
    else if (event.key === "-" || event.key === "_") this.zoom(1 / STEP);
    else if (event.key === "0" || event.key === "Home") this.fit();
    else return;
    event.preventDefault();
  }
}
