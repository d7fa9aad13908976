// Splits Markdown into blocks that cannot change any more and the rest that still may.

const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const LIST = /^ {0,3}([-*+]|\d{1,9}[.)])\s/;

// {finished: [text], open: text}. A blank line ends a block unless it is inside a fence, a formula
// or a list that goes on.
export function split(text) {
  const finished = [];
  const lines = text.split("\n");
  let block = [];
  let fence = null;
  let formula = null;
  let blank = false;
  lines.forEach((line, number) => {
    const last = number === lines.length - 1;
    if (fence === null && formula === null && blank && line.trim() && !continues(block, line)
        && !(last && /^\s*(\d{0,9}[.)]?|[-*+])$/.test(line) && LIST.test(block[0]))) {
      finished.push(block.join("\n").trimEnd());
      block = [];
    }
    if (fence === null && formula === null && !last) {
      fence = line.match(FENCE)?.[1] ?? null;
      if (fence === null) formula = opensFormula(line);
      if (fence !== null) { block.push(line); blank = false; return; }
    } else if (fence !== null && !last) {
      const closing = line.match(/^ {0,3}(`{3,}|~{3,})\s*$/)?.[1];
      if (closing?.startsWith(fence)) fence = null;
    } else if (formula !== null && line.trimEnd().endsWith(formula)) {
      formula = null;
    }
    blank = !line.trim();
    if (block.length || line.trim()) block.push(line);
  });
  return { finished, open: block.join("\n") };
}

function continues(block, line) {
  return block.length > 0 && LIST.test(block[0]) && (/^\s{2,}/.test(line) || LIST.test(line));
}

function opensFormula(line) {
  for (const [opening, closing] of [["$$", "$$"], ["\\[", "\\]"]]) {
    const text = line.trim();
    if (text.startsWith(opening) && !text.slice(2).includes(closing)) return closing;
  }
  return null;
}
