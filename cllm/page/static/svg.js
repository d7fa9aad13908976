// SVG elements, and horizontal bars.

const SPACE = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

const WIDTH = 340;
const ROW = 22;
const LABEL = 96;
const NUMBER = 62;

// rows: [{label, value, series}]; series chooses a colour by the class s0 to s5.
export function bars(title, rows, format) {
  const most = Math.max(...rows.map(({ value }) => value), 0) || 1;
  const height = rows.length * ROW + 4;
  const shapes = rows.flatMap(({ label, value, series }, number) => {
    const y = number * ROW;
    const length = Math.max(1, ((WIDTH - LABEL - NUMBER) * value) / most);
    return [
      svg("text", { x: LABEL - 6, y: y + 15, "text-anchor": "end" }, label),
      svg("rect", { x: LABEL, y: y + 3, width: length.toFixed(1), height: ROW - 6, rx: 2, class: `s${series % 6}` }),
      svg("text", { x: LABEL + length + 5, y: y + 15 }, format(value)),
    ];
  });
  const described = `${title}: ${rows.map(({ label, value }) => `${label} ${format(value)}`).join(", ")}`;
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": described, class: "bars" }, ...shapes);
}
