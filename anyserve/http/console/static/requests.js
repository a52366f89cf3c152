// The requests in flight, each with a button that cancels it.

import { element, find, keep, mark, say, seconds } from "./dom.js";
import { ask, Refused } from "./wire.js";

export function showRequests({ requests, in_flight: count }) {
  find("no-requests").hidden = count > 0;
  const part = requests.length < count ? `the oldest ${requests.length} of ${count}` : `${count}`;
  say(find("request-count"), part);
  keep(find("requests"), requests, ({ number }) => number, makeRequest);
}

function makeRequest({ number, request }) {
  const row = element("li");
  const what = element("span", "name");
  const place = element("span", "quiet");
  what.append(element("b", "", request.capability), " ", place);
  const state = element("span", "state");
  const when = element("span", "when");
  const button = element("button", "plain", "Cancel");
  button.type = "button";
  button.setAttribute("aria-label", `Cancel ${request.capability} ${request.id || number}`);
  button.addEventListener("click", () => cancel(number, button));
  row.append(what, state, when, button);
  row.update = ({ request: now }) => {
    mark(state, now.state);
    say(place, [now.id, now.place && `at ${now.place}`].filter(Boolean).join(" "));
    say(when, `${seconds(now.age)} old, ${deadline(now.remaining)}`);
  };
  return row;
}

function deadline(remaining) {
  if (remaining === null) return "no deadline";
  return remaining > 0 ? `${seconds(remaining)} left` : "past its deadline";
}

async function cancel(number, button) {
  button.disabled = true;
  say(button, "Cancelling");
  try {
    await ask("/console/cancel", { body: { number } });
  } catch (error) {
    if (error instanceof Refused && error.status === 404) return; // it has ended by itself
    button.disabled = false;
    say(button, "Cancel");
    const problem = find("problem");
    problem.hidden = false;
    say(problem, `The request was not cancelled: ${error.message}`);
  }
}
