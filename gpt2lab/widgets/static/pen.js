// Pens for the pictures of a view: of a canvas, sharp on every screen, and one that writes the same as SVG.

/** Size a canvas in CSS pixels and return its pen, on paper: a picture that is saved has it too. */
export function canvasPen(canvas, width, height, paper) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.fillStyle = paper;
  pen.fillRect(0, 0, width, height);
  pen.textBaseline = "middle";
  return pen;
}

/** A pen that writes SVG: as much of a canvas's pen as the views use. `svg(title)` is the document. */
export function svgPen(width, height, paper) {
  const ruler = document.createElement("canvas").getContext("2d"), turns = [""], written = [];
  const text = (value) => String(value).toWellFormed().replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]/g, "\ufffd")
    .replace(/[&<>"]/g, (character) => `&#${character.charCodeAt(0)};`);
  const write = (tag, attributes, inner = "") => {
    const all = { ...attributes, opacity: pen.globalAlpha, ...(turns.at(-1) && { transform: turns.at(-1) }) };
    written.push(`<${tag} ${Object.entries(all).map(([name, value]) => `${name}="${text(value)}"`).join(" ")}>${inner}</${tag}>`);
  };
  const stroke = () => ({ fill: "none", stroke: pen.strokeStyle, "stroke-width": pen.lineWidth });
  let path = "";
  const pen = {
    font: "", fillStyle: paper, strokeStyle: "", lineWidth: 1, globalAlpha: 1, textAlign: "left",
    measureText: (value) => Object.assign(ruler, { font: pen.font }).measureText(value),
    fillText: (value, x, y) => write("text", { x, y, fill: pen.fillStyle, style: `font: ${pen.font}`, "dominant-baseline": "central",
      "text-anchor": { left: "start", center: "middle", right: "end" }[pen.textAlign] }, text(value)),
    fillRect: (x, y, w, h) => write("rect", { x, y, width: w, height: h, fill: pen.fillStyle }),
    strokeRect: (x, y, w, h) => write("rect", { x, y, width: w, height: h, ...stroke() }),
    drawImage: (image, x, y, w, h) => write("image", { x, y, width: w, height: h, href: image.toDataURL(), style: "image-rendering: pixelated" }),
    save: () => turns.push(turns.at(-1)),
    restore: () => turns.pop(),
    translate: (x, y) => { turns[turns.length - 1] += `translate(${x} ${y})`; },
    rotate: (angle) => { turns[turns.length - 1] += `rotate(${angle * 180 / Math.PI})`; },
    beginPath: () => { path = ""; },
    moveTo: (x, y) => { path += `M${x} ${y}`; },
    lineTo: (x, y) => { path += `L${x} ${y}`; },
    stroke: () => write("path", { d: path, ...stroke() }),
    svg: (title) => `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">` +
      `<title>${text(title)}</title>${written.join("\n")}</svg>`,
  };
  pen.fillRect(0, 0, width, height);
  return pen;
}
