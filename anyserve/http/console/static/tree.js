// The actors, as their supervisors hold them.

import { element, find, keep, mark, say, seconds } from "./dom.js";

export function showTree({ tree }) {
  keep(find("tree"), [tree], ({ path }) => path, makeNode);
}

function makeNode({ name }) {
  const item = element("li");
  const state = element("span", "state");
  const facts = element("span", "facts-line");
  const children = element("ul");
  item.append(element("b", "", name), " ", state, " ", facts, children);
  item.update = (node) => {
    mark(state, node.state);
    say(facts, factsOf(node));
    children.hidden = !node.children.length;
    keep(children, node.children, ({ path }) => path, makeNode);
  };
  return item;
}

function factsOf(node) {
  const facts = [`for ${seconds(node.age)}`];
  if (node.restarts) facts.push(`${node.restarts} restarts`);
  if (node.mailbox_depth) facts.push(`mailbox ${node.mailbox_depth}/${node.mailbox_capacity}`);
  if (node.last_error) facts.push(node.last_error);
  for (const [name, value] of Object.entries(node.details)) {
    if (value !== null && value !== "") facts.push(`${name.replaceAll("_", " ")} ${value}`);
  }
  return facts.join(" · ");
}
