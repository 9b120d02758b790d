// Files between browser and kernel in small parts: no message grows with the file, and the page stays alive meanwhile.

const PART = 1 << 20;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function upload(model, el) {
  const input = element("input", { type: "file", accept: model.get("accept"), "aria-label": model.get("label") });
  const status = element("span", { role: "status", class: "ctvlm-upload-status" });
  el.append(element("label", { class: "ctvlm-upload" }, element("span", {}, model.get("label")), input), status);
  let file = null, sent = 0;
  const next = async () => {
    const part = await file.slice(sent, sent + PART).arrayBuffer();
    model.send({ kind: "part", start: sent }, undefined, [part]);
    sent += part.byteLength;
    status.textContent = `sending ${(sent / 1e6).toFixed(0)} of ${(file.size / 1e6).toFixed(0)} MB`;
  };
  input.addEventListener("change", () => {
    [file] = input.files;
    if (!file) return;
    const limit = model.get("limit_mb");
    if (file.size > limit * 1e6) {
      status.textContent = `The file has ${(file.size / 1e6).toFixed(0)} MB and at most ${limit} MB are taken; put it into the data folder and open it by its path.`;
      return;
    }
    sent = 0;
    model.send({ kind: "begin", name: file.name, size: file.size });
  });
  const listener = (message) => {
    if (message.kind === "more" && file) next();
    if (message.kind === "end") { status.textContent = message.text; file = null; input.value = ""; }
  };
  model.on("msg:custom", listener);
  return () => model.off("msg:custom", listener);
}

function download(model, el) {
  const status = element("span", { role: "status" });
  el.append(status);
  let parts = [];
  const listener = (message, buffers) => {
    if (message.kind === "link") {
      const whole = new URL(message.query, window.location.href).href;
      status.replaceChildren(element("a", { href: whole }, "link to this view"));
      return;
    }
    if (message.kind !== "part") return;
    if (message.number === 0) parts = [];
    parts.push(new Uint8Array(buffers[0].buffer.slice(buffers[0].byteOffset, buffers[0].byteOffset + buffers[0].byteLength)));
    status.textContent = `${message.name}: part ${message.number + 1} of ${message.count}`;
    if (message.number + 1 < message.count) return;
    const link = element("a", { download: message.name, href: URL.createObjectURL(new Blob(parts, { type: message.mime })) });
    parts = [];
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    status.textContent = `${message.name} was handed to the browser`;
  };
  model.on("msg:custom", listener);
  return () => model.off("msg:custom", listener);
}

export default {
  render: ({ model, el }) => (model.get("way") === "up" ? upload(model, el) : download(model, el)),
};
