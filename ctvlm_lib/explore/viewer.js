// Three linked slices of a CT: what a radiologist's hand expects of a viewer. The kernel sends each slice as it lies on
// the screen (HU, marks, heat); windowing, zoom, pan and measuring happen here, so that none of them waits for it.

const PLANES = ["axial", "coronal", "sagittal"];
const TOOLS = {
  crosshair: "Crosshair", window: "Window", pan: "Pan", caliper: "Caliper", box: "Draw box", polygon: "Draw polygon",
};
const GUTTER = 22; // px around a slice, where the letters stand
const CACHE_BYTES = 128e6;
const FIRST_STRUCTURE = 16; // codes of marks from here on are areas, those below are lines of the prompt
const CROSS = { axial: ["#56B4E9", []], coronal: ["#E69F00", [6, 3]], sagittal: ["#CC79A7", [2, 2]] };
const INK = "#E8E8EA", LETTER = "#F2E88A";
const KEYS = [
  ["↑ ↓, Page Up, Page Down, wheel", "next and previous slice"], ["Home, End", "first and last slice"],
  ["+ −, Ctrl or Shift with the wheel", "zoom"], ["Shift with arrows, Pan tool, middle button", "pan"],
  ["Alt with arrows, Crosshair tool", "move the crosshair"], ["[ ], ; '", "window width, level"],
  ["right button or Window tool, drag", "width (sideways) and level (up and down)"],
  ["Space, Enter, Escape", "drawing: a corner at the crosshair, close, give up"], ["R, double click", "reset the view"],
];

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const minus = (text) => String(text).replaceAll("-", "−");

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** The longest round length that takes at most a quarter of the width, as in the static figures. */
export function barLength(widthMm) {
  const lengths = [];
  for (let e = -1; e < 4; e++) for (const n of [1, 2, 5]) lengths.push(n * 10 ** e);
  return lengths.filter((length) => length <= widthMm / 4).pop() ?? 0.1;
}

class Slices {
  /** What the kernel has sent, asked for one slice of a plane at a time so that a fast wheel never makes a queue. */
  constructor(model, arrived) {
    Object.assign(this, { model, arrived, kept: new Map(), bytes: 0, asked: {}, wanted: {} });
    this.listener = (message, buffers) => this.take(message, buffers ?? []);
    model.on("msg:custom", this.listener);
  }

  get(plane, index) {
    const found = this.kept.get(`${plane}:${index}`);
    if (!found) this.want(plane, index);
    return found;
  }

  want(plane, index) {
    this.wanted[plane] = index;
    if (this.asked[plane] == null) this.ask(plane, index);
  }

  ask(plane, index) {
    this.asked[plane] = index;
    this.model.send({ kind: "slice", plane, index, version: this.model.get("version") });
  }

  take(message, buffers) {
    if (message.kind !== "slice") return;
    const { plane, index, version } = message;
    this.asked[plane] = null;
    const parts = buffers.map((b) => b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength));
    if (version === this.model.get("version")) {
      const heat = parts[2]?.byteLength ? new Uint8Array(parts[2]) : null;
      this.keep(`${plane}:${index}`, { hu: new Int16Array(parts[0]), marks: new Uint8Array(parts[1]), heat });
      this.arrived(plane, index);
    }
    if (this.wanted[plane] !== index || version !== this.model.get("version")) {
      const next = this.wanted[plane];
      if (!this.kept.has(`${plane}:${next}`)) this.ask(plane, next);
    }
  }

  keep(key, slice) {
    this.kept.set(key, slice);
    this.bytes += slice.hu.byteLength * 2;
    for (const [old, other] of this.kept) {
      if (this.bytes < CACHE_BYTES || old === key) break;
      this.kept.delete(old);
      this.bytes -= other.hu.byteLength * 2;
    }
  }

  clear() {
    this.kept.clear();
    this.bytes = 0;
    this.asked = {};
  }
}

class PlaneView {
  /** One canvas: draws a slice, and turns the hand's movements into calls of its viewer. */
  constructor(viewer, plane) {
    Object.assign(this, { viewer, plane, zoom: 1, centre: null, caliper: null, sketch: [], pointers: new Map() });
    this.base = document.createElement("canvas");
    this.over = document.createElement("canvas");
    this.warm = document.createElement("canvas");
    this.canvas = element("canvas", { tabindex: 0, role: "img", "data-plane": plane });
    this.title = element("span", { class: "ctvlm-plane-name" }, plane);
    this.position = element("span", { class: "ctvlm-position" });
    this.slider = element("input", {
      type: "range", min: 0, max: 1, step: 1, "aria-label": `${plane} slice`, oninput: () => this.go(+this.slider.value),
    });
    const step = (label, text, action) => element("button", { type: "button", "aria-label": label, title: label, onclick: action }, text);
    this.enlarge = step(`show ${plane} large`, "⤢", () => viewer.set("big", plane));
    this.element = element("figure", { class: "ctvlm-plane", "data-plane": plane },
      element("div", { class: "ctvlm-head" }, this.title, this.position, this.enlarge), this.canvas,
      element("div", { class: "ctvlm-foot" },
        step(`first ${plane} slice`, "«", () => this.go(0)), this.slider,
        step(`last ${plane} slice`, "»", () => this.go(this.frame.slices - 1))));
    this.listen();
  }

  get frame() { return this.viewer.model.get("frames")[this.plane]; }
  get index() { return this.viewer.at()[this.frame.axes[0]]; }
  get size() { return [this.frame.cols * this.frame.col_mm, this.frame.rows * this.frame.row_mm]; }

  /** px per mm, and the screen position of the slice's upper left corner. */
  get layout() {
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const [w, h] = this.size;
    const k = this.zoom * Math.max(0.01, Math.min((width - 2 * GUTTER) / w, (height - 2 * GUTTER) / h));
    const [cx, cy] = this.centre ?? [w / 2, h / 2];
    return { k, x: width / 2 - cx * k, y: height / 2 - cy * k, width, height };
  }

  mmAt(event) {
    const box = this.canvas.getBoundingClientRect(), { k, x, y } = this.layout;
    return [(event.clientX - box.left - x) / k, (event.clientY - box.top - y) / k];
  }

  pixelAt([x, y]) { return [Math.floor(y / this.frame.row_mm), Math.floor(x / this.frame.col_mm)]; }

  inside([row, column]) { return row >= 0 && column >= 0 && row < this.frame.rows && column < this.frame.cols; }

  /** Voxel (d, h, w) of a pixel of the current slice. */
  voxel([row, column]) {
    const { axes, flips, rows, cols } = this.frame, at = [0, 0, 0];
    at[axes[0]] = this.index;
    at[axes[1]] = flips[0] ? rows - 1 - row : row;
    at[axes[2]] = flips[1] ? cols - 1 - column : column;
    return at;
  }

  /** Pixel (row, column) of a voxel. */
  pixel(at) {
    const { axes, flips, rows, cols } = this.frame;
    const row = at[axes[1]], column = at[axes[2]];
    return [flips[0] ? rows - 1 - row : row, flips[1] ? cols - 1 - column : column];
  }

  go(index) {
    const at = this.viewer.at();
    at[this.frame.axes[0]] = clamp(Math.round(index), 0, this.frame.slices - 1);
    this.viewer.move(at);
  }

  zoomBy(factor, around) {
    const { k, x, y, width, height } = this.layout;
    const px = around ?? [width / 2, height / 2];
    const mm = [(px[0] - x) / k, (px[1] - y) / k];
    this.zoom = clamp(this.zoom * factor, 0.5, 40);
    const scale = this.layout.k;
    this.centre = [mm[0] - (px[0] - width / 2) / scale, mm[1] - (px[1] - height / 2) / scale];
    this.viewer.rememberView();
    this.draw();
  }

  panBy(dx, dy) {
    const { k } = this.layout, [w, h] = this.size, [cx, cy] = this.centre ?? [w / 2, h / 2];
    this.centre = [clamp(cx - dx / k, 0, w), clamp(cy - dy / k, 0, h)];
    this.viewer.rememberView();
    this.draw();
  }

  reset() { Object.assign(this, { zoom: 1, centre: null, caliper: null, sketch: [] }); }

  listen() {
    const canvas = this.canvas;
    let turned = 0;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      if (event.ctrlKey || event.shiftKey || event.metaKey) {
        const by = event.deltaY || event.deltaX; // browsers turn Shift with the wheel sideways
        return this.zoomBy(Math.exp(-by / 300), [event.clientX - box.left, event.clientY - box.top]);
      }
      turned += event.deltaMode ? Math.sign(event.deltaY) * 40 : event.deltaY;
      const steps = Math.trunc(turned / 40);
      if (!steps) return;
      turned -= steps * 40;
      this.go(this.index + (this.plane === "axial" ? -steps : steps)); // downwards is towards the feet
    }, { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => this.up(event));
    canvas.addEventListener("pointerleave", () => this.viewer.read(this, null));
    canvas.addEventListener("dblclick", () => (this.tool() === "polygon" ? this.finish() : this.viewer.reset()));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.viewer.read(this, null));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  tool(event) {
    if (event?.button === 2) return "window";
    if (event?.button === 1) return "pan";
    return this.viewer.model.get("tool");
  }

  down(event) {
    this.canvas.focus();
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.pointers.size === 2) { this.drag = null; this.pinch = this.spread(); return; }
    const tool = this.tool(event), mm = this.mmAt(event), pixel = this.pixelAt(mm);
    this.drag = { tool, x: event.clientX, y: event.clientY, window: this.viewer.model.get("window") };
    if (tool === "crosshair" && this.inside(pixel)) this.viewer.move(this.voxel(pixel));
    if (tool === "caliper") this.caliper = { index: this.index, a: mm, b: mm };
    if (tool === "box") this.sketch = [this.clipped(pixel), this.clipped(pixel)];
    if (tool === "polygon") this.corner(this.clipped(pixel));
    this.draw();
  }

  moved(event) {
    const held = this.pointers.has(event.pointerId);
    if (held) this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.pinch && this.pointers.size === 2) {
      const now = this.spread(), box = this.canvas.getBoundingClientRect();
      this.zoomBy(now.apart / this.pinch.apart, [now.x - box.left, now.y - box.top]);
      this.panBy(now.x - this.pinch.x, now.y - this.pinch.y);
      this.pinch = now;
      return;
    }
    const mm = this.mmAt(event), pixel = this.pixelAt(mm);
    this.viewer.read(this, this.inside(pixel) ? pixel : null);
    if (!held || !this.drag) return;
    const { tool, x, y, window } = this.drag, dx = event.clientX - x, dy = event.clientY - y;
    if (tool === "crosshair" && this.inside(pixel)) this.viewer.move(this.voxel(pixel));
    if (tool === "window") this.viewer.setWindow(window[0] + dy * 2, window[1] + dx * 4);
    if (tool === "pan") { this.panBy(dx, dy); Object.assign(this.drag, { x: event.clientX, y: event.clientY }); }
    if (tool === "caliper") this.caliper.b = mm;
    if (tool === "box") this.sketch[1] = this.clipped(pixel);
    if (tool === "caliper" || tool === "box") this.draw();
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    if (this.pointers.size < 2) this.pinch = null;
    if (this.drag?.tool === "box" && this.sketch.length === 2) this.finish();
    this.drag = null;
  }

  spread() {
    const [[ax, ay], [bx, by]] = [...this.pointers.values()];
    return { apart: Math.max(1, Math.hypot(ax - bx, ay - by)), x: (ax + bx) / 2, y: (ay + by) / 2 };
  }

  clipped([row, column]) { return [clamp(row, 0, this.frame.rows - 1), clamp(column, 0, this.frame.cols - 1)]; }

  corner(pixel) {
    const last = this.sketch.at(-1);
    if (!last || last[0] !== pixel[0] || last[1] !== pixel[1]) this.sketch.push(pixel);
    if (this.viewer.model.get("tool") === "box" && this.sketch.length === 2) this.finish();
    this.draw();
  }

  finish() {
    const kind = this.viewer.model.get("tool"), enough = kind === "box" ? 2 : 3;
    if (this.sketch.length >= enough) {
      this.viewer.set("drawn", { kind, plane: this.plane, index: this.index, points: this.sketch, count: Date.now() });
    }
    this.sketch = [];
    this.draw();
  }

  key(event) {
    const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const arrow = arrows[event.key], [level, width] = this.viewer.model.get("window");
    const drawing = ["box", "polygon"].includes(this.viewer.model.get("tool"));
    if (event.ctrlKey || event.metaKey) return;
    const done = () => { event.preventDefault(); event.stopPropagation(); }; // Jupyter's own keys mustn't see these
    if (arrow && event.altKey) {
      const [row, column] = this.pixel(this.viewer.at());
      this.viewer.move(this.voxel(this.clipped([row + arrow[0], column + arrow[1]])));
    } else if (arrow && event.shiftKey) this.panBy(-arrow[1] * 20, -arrow[0] * 20);
    else if (event.key === "ArrowUp" || event.key === "PageUp") this.go(this.index + (event.key === "PageUp" ? 10 : 1));
    else if (event.key === "ArrowDown" || event.key === "PageDown") this.go(this.index - (event.key === "PageDown" ? 10 : 1));
    else if (event.key === "Home") this.go(0);
    else if (event.key === "End") this.go(this.frame.slices - 1);
    else if (event.key === "+" || event.key === "=") this.zoomBy(1.25);
    else if (event.key === "-") this.zoomBy(0.8);
    else if (event.key === "[") this.viewer.setWindow(level, width * 0.9);
    else if (event.key === "]") this.viewer.setWindow(level, width / 0.9);
    else if (event.key === ";") this.viewer.setWindow(level - 10, width);
    else if (event.key === "'") this.viewer.setWindow(level + 10, width);
    else if (event.key === "r" || event.key === "R") this.viewer.reset();
    else if (event.key === " " && drawing) this.corner(this.pixel(this.viewer.at()));
    else if (event.key === "Enter" && drawing) this.finish();
    else if (event.key === "Escape") { this.sketch = []; this.caliper = null; this.draw(); }
    else return;
    done();
    this.viewer.read(this, null);
  }

  /** Draw the current slice, or leave the last one until the kernel has sent it. */
  draw() {
    const { canvas, viewer } = this;
    if (!this.frame || !canvas.clientWidth) return;
    const index = this.index, slice = viewer.slices.get(this.plane, index);
    this.slider.max = this.frame.slices - 1;
    this.slider.value = index;
    if (!slice) return;
    this.shown = slice;
    const dots = window.devicePixelRatio || 1, { k, x, y, width, height } = this.layout;
    if (canvas.width !== Math.round(width * dots) || canvas.height !== Math.round(height * dots)) {
      canvas.width = Math.round(width * dots);
      canvas.height = Math.round(height * dots);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(dots, 0, 0, dots, 0, 0);
    pen.fillStyle = "#0B0B0D";
    pen.fillRect(0, 0, width, height);
    const [w, h] = this.size, place = [x, y, w * k, h * k];
    this.paintGrey(slice);
    pen.imageSmoothingEnabled = true;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.base, ...place);
    if (slice.heat && viewer.model.get("heat").shown) {
      this.paintHeat(slice);
      pen.drawImage(this.warm, ...place);
    }
    if (viewer.model.get("overlay")) {
      this.paintMarks(slice);
      pen.imageSmoothingEnabled = false;
      pen.drawImage(this.over, ...place);
    }
    this.annotate(pen);
    const text = `${this.plane}, slice ${this.words(index)}`;
    this.position.textContent = this.words(index);
    if (this.plane === viewer.model.get("big") && !viewer.status.textContent) viewer.read(null, null);
    canvas.setAttribute("aria-label", `${text}; ${viewer.windowText()}${viewer.legendText()}`);
    canvas.dataset.index = index;
    canvas.dataset.version = viewer.model.get("version");
  }

  words(index) {
    const axis = { axial: "z", coronal: "y", sagittal: "x" }[this.plane];
    return minus(`${index} of 0–${this.frame.slices - 1}, ${axis} ${this.frame.positions_mm[index].toFixed(1)} mm`);
  }

  image(canvas) {
    const { rows, cols } = this.frame;
    if (canvas.width !== cols || canvas.height !== rows) Object.assign(canvas, { width: cols, height: rows });
    const pen = canvas.getContext("2d");
    const pixels = pen.createImageData(cols, rows);
    return [pen, pixels, new Uint32Array(pixels.data.buffer)];
  }

  /** Whether a layer has to be painted again: it was made of other things. */
  stale(layer, ...made) {
    const before = this.made?.[layer];
    this.made = { ...this.made, [layer]: made };
    return !before || before.some((one, i) => one !== made[i]);
  }

  paintGrey(slice) {
    const grey = this.viewer.greys(), { hu } = slice;
    if (!this.stale("grey", slice, grey)) return;
    const [pen, pixels, out] = this.image(this.base);
    for (let i = 0; i < hu.length; i++) out[i] = grey[hu[i] + 32768];
    pen.putImageData(pixels, 0, 0);
  }

  paintHeat(slice) {
    const { heat } = slice, { colours } = this.viewer.model.get("heat");
    if (!this.stale("heat", slice, colours)) return;
    const [pen, pixels, out] = this.image(this.warm);
    const table = colours.map((rgb, value) => packed(rgb, value * 0.7));
    for (let i = 0; i < heat.length; i++) out[i] = table[heat[i]];
    pen.putImageData(pixels, 0, 0);
  }

  paintMarks(slice) {
    const { cols, rows } = this.frame, model = this.viewer.model, opacity = model.get("opacity"), { marks } = slice;
    if (!this.stale("marks", slice, opacity, model.get("palette"))) return;
    const palette = [];
    for (const entry of model.get("palette")) palette[entry.code] = entry;
    const [pen, pixels, out] = this.image(this.over);
    for (let row = 0, i = 0; row < rows; row++) {
      for (let column = 0; column < cols; column++, i++) {
        const code = marks[i], entry = code && palette[code];
        if (!entry) continue;
        let alpha = opacity;
        if (code >= FIRST_STRUCTURE) {
          const edge = !row || !column || row === rows - 1 || column === cols - 1 || marks[i - 1] !== code
            || marks[i + 1] !== code || marks[i - cols] !== code || marks[i + cols] !== code;
          alpha *= edge ? 0.9 : 0.22; // an outline before an area
        } else if (entry.dashed && Math.floor((row + column) / 2) % 2) alpha *= 0.35;
        out[i] = packed(entry.rgb, 255 * alpha);
      }
    }
    pen.putImageData(pixels, 0, 0);
  }

  annotate(pen) {
    const { k, x, y, width, height } = this.layout, [w, h] = this.size, { letters } = this.frame;
    this.crosshair(pen);
    const edge = { left: Math.max(x, 0), right: Math.min(x + w * k, width), top: Math.max(y, 0), bottom: Math.min(y + h * k, height) };
    pen.font = "bold 14px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    const half = GUTTER / 2, middle = [(edge.left + edge.right) / 2, (edge.top + edge.bottom) / 2];
    write(pen, letters[0], clamp(edge.left - half, half, width), middle[1], LETTER);
    write(pen, letters[1], clamp(edge.right + half, 0, width - half), middle[1], LETTER);
    write(pen, letters[2], middle[0], clamp(edge.top - half, half, height), LETTER);
    write(pen, letters[3], middle[0], clamp(edge.bottom + half, 0, height - half), LETTER);
    const length = barLength((edge.right - edge.left) / k), left = 8, right = left + length * k, below = height - 6;
    pen.strokeStyle = pen.fillStyle = INK;
    pen.lineWidth = 1.5;
    path(pen, [[left, below - 4], [left, below], [right, below], [right, below - 4]]);
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "left";
    write(pen, `${length} mm`, right + 5, below - 3, INK);
    if (this.caliper && this.caliper.index === this.index) this.measure(pen);
    if (this.sketch.length) this.outline(pen);
    if (this.plane === this.viewer.model.get("big") && this.shown.heat && this.viewer.model.get("heat").shown) this.bar(pen);
  }

  crosshair(pen) {
    if (!this.viewer.model.get("crosshair")) return;
    const { k, x, y } = this.layout, { row_mm, col_mm, axes } = this.frame, [w, h] = this.size;
    const [row, column] = this.pixel(this.viewer.at()), cx = x + (column + 0.5) * col_mm * k, cy = y + (row + 0.5) * row_mm * k;
    for (const other of PLANES.filter((name) => name !== this.plane)) {
      const along = this.viewer.model.get("frames")[other].axes[0];
      [pen.strokeStyle] = CROSS[other];
      pen.setLineDash(CROSS[other][1]);
      pen.lineWidth = 1;
      if (along === axes[1]) { path(pen, [[x, cy], [cx - 14, cy]]); path(pen, [[cx + 14, cy], [x + w * k, cy]]); }
      else { path(pen, [[cx, y], [cx, cy - 14]]); path(pen, [[cx, cy + 14], [cx, y + h * k]]); }
    }
    pen.setLineDash([]);
  }

  measure(pen) {
    const { k, x, y } = this.layout, { a, b } = this.caliper, length = Math.hypot(a[0] - b[0], a[1] - b[1]);
    const ends = [a, b].map(([mx, my]) => [x + mx * k, y + my * k]);
    pen.strokeStyle = "#F0E442";
    pen.lineWidth = 1.5;
    path(pen, ends);
    for (const [px, py] of ends) pen.strokeRect(px - 2.5, py - 2.5, 5, 5);
    pen.font = "bold 12px system-ui, sans-serif";
    pen.textAlign = "left";
    write(pen, `${length.toFixed(1)} mm`, ends[1][0] + 8, ends[1][1], "#F0E442");
    this.canvas.dataset.caliperMm = length.toFixed(1);
  }

  outline(pen) {
    const { k, x, y } = this.layout, { row_mm, col_mm } = this.frame;
    const at = ([row, column]) => [x + (column + 0.5) * col_mm * k, y + (row + 0.5) * row_mm * k];
    pen.strokeStyle = "#F0E442";
    pen.lineWidth = 1.5;
    if (this.viewer.model.get("tool") === "box" && this.sketch.length === 2) {
      const [[ax, ay], [bx, by]] = this.sketch.map(at);
      pen.strokeRect(Math.min(ax, bx), Math.min(ay, by), Math.abs(ax - bx), Math.abs(ay - by));
    } else path(pen, this.sketch.map(at));
    for (const [px, py] of this.sketch.map(at)) pen.strokeRect(px - 2, py - 2, 4, 4);
  }

  bar(pen) {
    const { width } = this.layout, { colours, title, top } = this.viewer.model.get("heat"), tall = 110, left = width - 34;
    for (let i = 0; i < tall; i++) {
      pen.fillStyle = `rgb(${colours[Math.round(255 * (1 - i / (tall - 1)))]})`;
      pen.fillRect(left, 40 + i, 10, 1);
    }
    pen.strokeStyle = INK;
    pen.strokeRect(left - 0.5, 39.5, 11, tall + 1);
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "right";
    write(pen, top, left - 4, 44, INK);
    write(pen, "0", left - 4, 40 + tall - 4, INK);
    write(pen, title, width - 8, 28, INK);
  }
}

/** A colour as canvases store it. */
function packed([r, g, b], alpha) { return ((Math.round(alpha) << 24) | (b << 16) | (g << 8) | r) >>> 0; }

function path(pen, points) {
  pen.beginPath();
  points.forEach(([px, py], i) => (i ? pen.lineTo(px, py) : pen.moveTo(px, py)));
  pen.stroke();
}

function write(pen, text, px, py, colour) {
  pen.lineWidth = 3;
  pen.strokeStyle = "rgba(0, 0, 0, 0.75)"; // a dark rim, so that it can be read on any tissue
  pen.strokeText(text, px, py);
  pen.fillStyle = colour;
  pen.fillText(text, px, py);
}

class Viewer {
  constructor(model, el) {
    this.model = model;
    this.slices = new Slices(model, (plane, index) => this.arrived(plane, index));
    this.views = PLANES.map((plane) => new PlaneView(this, plane));
    this.status = element("div", { class: "ctvlm-status" });
    this.spoken = element("div", { class: "ctvlm-spoken", "aria-live": "polite" });
    this.legend = element("div", { class: "ctvlm-legend", "aria-label": "legend" });
    this.planes = element("div", { class: "ctvlm-planes" }, ...this.views.map((view) => view.element));
    const help = element("details", { class: "ctvlm-help" }, element("summary", {}, "Keys and mouse"),
      element("table", {}, ...KEYS.map(([keys, does]) => element("tr", {}, element("th", {}, keys), element("td", {}, does)))));
    this.root = element("section", { class: "ctvlm-viewer", "aria-label": "CT viewer" },
      this.toolbar(), this.planes, this.status, this.legend, help, this.spoken);
    el.append(this.root);
    this.here = [...model.get("at")]; // the page's own place: an echo of where it was must not pull it back
    const redraw = () => this.redraw();
    model.on("change:at", () => this.sentTo());
    for (const name of ["overlay", "opacity", "crosshair", "heat", "tool"]) model.on(`change:${name}`, redraw);
    model.on("change:window", () => { this.lut = null; this.showWindow(); redraw(); });
    model.on("change:palette", () => { this.showLegend(); redraw(); });
    model.on("change:version", () => { this.slices.clear(); redraw(); });
    model.on("change:frames", () => { this.sentTo(); this.views.forEach((view) => view.reset()); this.slices.clear(); redraw(); });
    model.on("change:big", () => this.arrange());
    model.on("change:layout_", () => this.arrange());
    model.on("change:view", () => this.restoreView());
    this.showWindow();
    this.showLegend();
    this.restoreView();
    this.arrange();
  }

  at() { return [...this.here]; }

  set(name, value) { this.model.set(name, value); this.model.save_changes(); }

  move(at) {
    if (String(at) === String(this.here)) return;
    this.here = at;
    this.redraw(); // draws what is here and asks for what isn't …
    clearTimeout(this.telling);
    this.telling = setTimeout(() => { // … before the kernel is told where we are
      this.told = String(at);
      this.set("at", at);
    }, 60);
  }

  /** The kernel has a place: go there, unless it is the one that it was just told. */
  sentTo() {
    const at = this.model.get("at");
    if (String(at) === this.told) return;
    clearTimeout(this.telling);
    this.here = [...at];
    this.told = null;
    this.redraw();
  }

  arrived(plane, index) {
    const view = this.views.find((one) => one.plane === plane);
    if (view.index !== index) return;
    view.draw();
    clearTimeout(this.resting);
    this.resting = setTimeout(() => this.views.forEach((one) => this.fetchBeside(one)), 120);
  }

  /** The neighbours of a slice are fetched while nobody waits. */
  fetchBeside({ plane, index, frame }) {
    for (const next of [index + 1, index - 1]) {
      if (next >= 0 && next < frame.slices && !this.slices.kept.has(`${plane}:${next}`)) { this.slices.want(plane, next); return; }
    }
  }

  redraw() {
    for (const view of this.views) {
      this.slices.wanted[view.plane] = view.index;
      view.draw();
    }
    this.read(null, null);
  }

  greys() {
    if (this.lut) return this.lut;
    const [level, width] = this.model.get("window"), low = level - width / 2;
    this.lut = new Uint32Array(65536);
    for (let i = 0; i < 65536; i++) {
      const value = clamp(Math.round(((i - 32768 - low) / width) * 255), 0, 255);
      this.lut[i] = 0xff000000 | (value << 16) | (value << 8) | value;
    }
    return this.lut;
  }

  setWindow(level, width) { this.set("window", [clamp(Math.round(level), -2000, 4000), clamp(Math.round(width), 2, 6000)]); }

  windowText() {
    const [level, width] = this.model.get("window");
    return minus(`window width ${width}, level ${level} HU`);
  }

  legendText() {
    const names = this.model.get("palette").map((entry) => entry.label);
    return names.length && this.model.get("overlay") ? `; drawn: ${names.join(", ")}` : "";
  }

  /** HU and place under the pointer, or at the crosshair. */
  read(view, pixel) {
    const one = view ?? this.views.find((other) => other.plane === this.model.get("big"));
    if (!one.shown || !one.frame) return;
    const [row, column] = pixel ?? one.pixel(this.at());
    const place = row * one.frame.cols + column, hu = one.shown.hu[place], code = one.shown.marks[place];
    const [d, h, w] = one.voxel([row, column]), affine = this.model.get("affine");
    const mm = [0, 1, 2].map((i) => affine[i][0] * d + affine[i][1] * h + affine[i][2] * w + affine[i][3]);
    const entry = this.model.get("palette").find((other) => other.code === code);
    const [x, y, z] = mm.map((value) => value.toFixed(1));
    this.status.textContent = minus(`${pixel ? "pointer" : "crosshair"}: ${hu} HU at x ${x}, y ${y}, z ${z} mm (LPS)`)
      + (entry ? ` · ${entry.label}` : "");
    if (!pixel && view) this.spoken.textContent = `${one.plane}, slice ${one.words(one.index)}; ${hu} HU at the crosshair`;
  }

  reset() {
    this.views.forEach((view) => view.reset());
    this.set("window", this.model.get("presets")[0].window);
    this.rememberView();
    this.redraw();
  }

  rememberView() {
    const view = {};
    for (const { plane, zoom, centre } of this.views) if (zoom !== 1 || centre) view[plane] = { zoom, centre };
    this.mine = view;
    this.set("view", view);
  }

  restoreView() {
    const view = this.model.get("view");
    if (view === this.mine) return;
    for (const one of this.views) Object.assign(one, { zoom: view[one.plane]?.zoom ?? 1, centre: view[one.plane]?.centre ?? null });
    this.redraw();
  }

  arrange() {
    const big = this.model.get("big"), three = this.model.get("layout_") === "three planes";
    this.planes.classList.toggle("ctvlm-one", !three);
    for (const view of this.views) {
      view.element.classList.toggle("ctvlm-big", view.plane === big);
      view.element.hidden = !three && view.plane !== big;
      view.enlarge.hidden = view.plane === big;
    }
    this.plane.value = three ? `three, ${big}` : big;
    this.redraw();
  }

  toolbar() {
    const { model } = this, number = (label, place) => element("input", {
      type: "number", "aria-label": label, title: label,
      onchange: (event) => {
        const now = [...model.get("window")];
        if (!Number.isFinite(event.target.valueAsNumber)) return this.showWindow();
        now[place] = event.target.valueAsNumber;
        this.setWindow(...now);
        this.showWindow();
      },
    });
    this.plane = element("select", { "aria-label": "planes", onchange: () => {
      const [first, second] = this.plane.value.split(", ");
      model.set("layout_", second ? "three planes" : "one plane");
      this.set("big", second ?? first);
    } }, ...PLANES.map((plane) => element("option", { value: `three, ${plane}` }, `three planes, ${plane} large`)),
      ...PLANES.map((plane) => element("option", { value: plane }, `${plane} alone`)));
    this.preset = element("select", { "aria-label": "window preset", onchange: () => {
      const found = model.get("presets").find((one) => one.name === this.preset.value);
      if (found) this.set("window", found.window);
    } }, ...model.get("presets").map(({ name }) => element("option", { value: name }, name)), element("option", { value: "" }, "own"));
    [this.level, this.width] = [number("window level, HU", 0), number("window width, HU", 1)];
    this.tools = Object.entries(TOOLS).map(([name, label]) =>
      element("button", { type: "button", "data-tool": name, onclick: () => this.set("tool", name) }, label));
    const pressed = () => this.tools.forEach((one) => one.setAttribute("aria-pressed", one.dataset.tool === model.get("tool")));
    model.on("change:tool", pressed);
    pressed();
    const check = (name, label) => {
      const input = element("input", { type: "checkbox", onchange: () => this.set(name, input.checked) });
      const show = () => { input.checked = model.get(name); };
      model.on(`change:${name}`, show);
      show();
      return element("label", {}, input, label);
    };
    const opacity = element("input", {
      type: "range", min: 0, max: 1, step: 0.05, "aria-label": "overlay opacity", oninput: () => this.set("opacity", +opacity.value),
    });
    const show = () => { opacity.value = model.get("opacity"); };
    model.on("change:opacity", show);
    show();
    return element("div", { class: "ctvlm-toolbar", role: "group", "aria-label": "viewer controls" },
      this.plane, element("span", { class: "ctvlm-group" }, "W/L ", this.preset, this.width, this.level),
      element("span", { class: "ctvlm-group", role: "group", "aria-label": "tool" }, ...this.tools),
      element("button", { type: "button", onclick: () => this.reset() }, "Reset"),
      element("span", { class: "ctvlm-group" }, check("overlay", "Overlay"), opacity, check("crosshair", "Lines")));
  }

  showWindow() {
    const [level, width] = this.model.get("window");
    [this.level.value, this.width.value] = [level, width];
    const found = this.model.get("presets").find(({ window: [l, w] }) => l === level && w === width);
    this.preset.value = found?.name ?? "";
  }

  showLegend() {
    this.legend.replaceChildren(...this.model.get("palette").map((entry) => {
      const swatch = element("i", { class: entry.code >= FIRST_STRUCTURE ? "ctvlm-area" : "ctvlm-line" });
      swatch.style.borderColor = `rgb(${entry.rgb})`;
      swatch.style.borderStyle = entry.dashed ? "dashed" : "solid";
      return element("span", {}, swatch, entry.label);
    }));
  }

  end() { this.model.off("msg:custom", this.slices.listener); }
}

export default {
  render({ model, el }) {
    const viewer = new Viewer(model, el);
    return () => viewer.end();
  },
};
