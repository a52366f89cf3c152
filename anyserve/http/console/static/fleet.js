// Replicas, their capabilities, and how busy each is.

import { element, find, keep, mark, say, seconds, svg } from "./dom.js";

const LOOKS = 60; // of the line that shows the last minute

export function showFleet(snapshot) {
  const { replicas, replica_count: count } = snapshot;
  find("no-replicas").hidden = count > 0;
  const part = replicas.length < count ? `${replicas.length} of ${count}` : `${count}`;
  say(find("replica-count"), part);
  keep(find("replicas"), replicas, (replica) => replica.id, makeReplica);
}

function makeReplica({ id }) {
  const card = element("article", "card replica");
  const head = element("div", "head");
  const state = element("span", "state");
  const about = element("span", "quiet");
  head.append(element("h3", "", id), state, about);
  const capabilities = element("div");
  card.append(head, capabilities);
  card.update = (replica) => {
    mark(state, replica.state);
    const silence = replica.silent > 3 ? `, silent for ${seconds(replica.silent)}` : "";
    say(about, replica.address + silence);
    keep(capabilities, replica.capabilities, ({ name }) => name, makeCapability);
  };
  return card;
}

function makeCapability({ name }) {
  const row = element("div", "capability");
  const head = element("div", "head");
  const state = element("span", "state");
  const about = element("span", "about");
  head.append(element("span", "name", name), state, about);
  const bar = element("div", "bar");
  const filled = element("div");
  bar.append(filled);
  const load = element("span", "load");
  const reason = element("p", "reason");
  const line = svg("polyline", {});
  const spark = svg("svg", { class: "spark", viewBox: "0 0 60 32", preserveAspectRatio: "none" });
  spark.setAttribute("aria-hidden", "true");
  spark.append(line);
  row.append(head, bar, load, reason, spark);
  const looks = [];
  row.update = (capability) => {
    const { running, waiting, slots, tokens_per_second: rate } = capability;
    mark(state, capability.state);
    say(about, capability.about);
    filled.style.width = `${slots ? Math.min(100, (100 * running) / slots) : 0}%`;
    bar.hidden = load.hidden = !slots;
    const more = [waiting ? `${waiting} waiting` : "", rate ? `${rate} tokens/s` : ""];
    say(load, [`${running} of ${slots} running`, ...more.filter(Boolean)].join(", "));
    say(reason, capability.reason);
    reason.hidden = !capability.reason;
    looks.push(running + waiting);
    if (looks.length > LOOKS) looks.shift();
    line.setAttribute("points", points(looks, slots));
  };
  return row;
}

function points(looks, slots) {
  const top = Math.max(1, slots, ...looks);
  const start = LOOKS - looks.length;
  return looks.map((look, at) => `${start + at},${30 - (28 * look) / top}`).join(" ");
}
