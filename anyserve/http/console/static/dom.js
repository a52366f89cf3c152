// Elements, made and kept. Text goes in as text alone: what comes from requests is never markup.

const SVG = "http://www.w3.org/2000/svg";

export const find = (id) => document.getElementById(id);

export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

export function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Sets text only where it is another one, so that selections stay and nothing is read out twice.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node, state) {
  if (node.dataset.state !== state) node.dataset.state = state;
  say(node, state);
}

// Gives `parent` one child for each item, and keeps those of before: `make(item)` makes a child
// with an `update(item)` of its own. So focus, and what is scrolled, stay where they are.
export function keep(parent, items, keyOf, make) {
  const before = parent.kept ?? new Map();
  const kept = new Map();
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    if (kept.has(key)) continue;
    const child = before.get(key) ?? make(item);
    kept.set(key, child);
    child.update(item);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const [key, child] of before) if (!kept.has(key)) child.remove();
  parent.kept = kept;
}

export function seconds(value) {
  if (value < 60) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  const whole = Math.floor(value);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}
