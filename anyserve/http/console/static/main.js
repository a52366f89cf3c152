// The console: takes snapshots as they come, and has each part shown.

import { find, say, seconds } from "./dom.js";
import { showFleet } from "./fleet.js";
import { showModels, startPrompts } from "./prompt.js";
import { showRequests } from "./requests.js";
import { showTree } from "./tree.js";
import { ask, events, setKey } from "./wire.js";

const AGAIN = 1000; // ms until the next try once the server has gone

function show(snapshot) {
  say(find("who"), `${snapshot.kind} ${snapshot.name === snapshot.kind ? "" : snapshot.name} on ${snapshot.address}`);
  say(find("in-flight"), `${snapshot.in_flight}`);
  say(find("uptime"), seconds(snapshot.uptime));
  say(find("version"), snapshot.version);
  document.title = `${snapshot.name} – AnyServe`;
  showFleet(snapshot);
  showRequests(snapshot);
  showModels(snapshot);
  showTree(snapshot);
}

function state(word, text = word) {
  find("status").dataset.state = word;
  say(find("status"), text);
}

function trouble(message) {
  find("problem").hidden = !message;
  say(find("problem"), message);
}

async function watch() {
  const answer = await ask("/console/events");
  trouble("");
  find("key-form").hidden = true;
  find("console").hidden = false;
  for await (const data of events(answer)) {
    const snapshot = JSON.parse(data);
    state(snapshot.draining ? "draining" : "live");
    show(snapshot);
  }
}

async function forever() {
  for (;;) {
    try {
      await watch();
    } catch (error) {
      if (error.status === 401) {
        askForKey(error.message);
        return;
      }
      trouble(error.status ? error.message : "");
      state("lost", "not connected");
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
  }
}

function askForKey(reason) {
  state("waiting", "locked");
  find("console").hidden = true;
  const form = find("key-form");
  if (find("key").value) trouble(reason);
  find("key").value = "";
  form.hidden = false;
  find("key").focus();
}

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(find("key").value.trim());
  forever();
});
startPrompts();
forever();
