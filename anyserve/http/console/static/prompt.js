// The prompt box: a chat of one message, streamed by OpenAI's API on the same port.

import { find, say } from "./dom.js";
import { ask, events } from "./wire.js";

let running = null; // the AbortController of the answer that comes in

export function showModels({ models }) {
  const select = find("model");
  const shown = [...select.options].map((option) => option.value);
  if (shown.join("\n") !== models.join("\n")) {
    const chosen = select.value;
    select.replaceChildren(...models.map((model) => new Option(model, model)));
    if (models.includes(chosen)) select.value = chosen;
  }
  select.disabled = !models.length;
  find("send").disabled = !models.length || running !== null;
  if (!models.length && running === null) say(find("answer-note"), "No text model is served.");
  else if (find("answer-note").textContent === "No text model is served.") {
    say(find("answer-note"), "");
  }
}

export function startPrompts() {
  find("prompt-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running === null) send();
  });
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      find("prompt-form").requestSubmit();
    }
  });
  find("stop").addEventListener("click", () => running?.abort());
}

async function send() {
  const answer = find("answer");
  const note = find("answer-note");
  running = new AbortController();
  find("send").disabled = true;
  find("stop").hidden = false;
  answer.hidden = false;
  answer.replaceChildren();
  say(note, "Waiting for the first token");
  const began = performance.now();
  let first = 0;
  let tokens = 0;
  try {
    for await (const chunk of chunks(running.signal)) {
      if (chunk.error) throw new Error(chunk.error.message);
      tokens = chunk.usage?.completion_tokens ?? tokens;
      const text = chunk.choices?.[0]?.delta?.content;
      if (!text) continue;
      if (!first) {
        first = performance.now();
        say(note, "Answering");
      }
      const atEnd = answer.scrollHeight - answer.scrollTop - answer.clientHeight < 24;
      answer.append(text);
      if (atEnd) answer.scrollTop = answer.scrollHeight;
    }
    say(note, figures(began, first, tokens));
  } catch (error) {
    say(note, running.signal.aborted ? "Stopped." : `It failed: ${error.message}`);
  } finally {
    running = null;
    find("send").disabled = find("model").disabled;
    find("stop").hidden = true;
  }
}

async function* chunks(signal) {
  const body = {
    model: find("model").value,
    messages: [{ role: "user", content: find("prompt").value }],
    max_tokens: Number(find("most").value) || undefined,
    stream: true,
    stream_options: { include_usage: true },
  };
  const answer = await ask("/v1/chat/completions", { body, signal });
  for await (const data of events(answer)) {
    if (data === "[DONE]") return;
    yield JSON.parse(data);
  }
}

function figures(began, first, tokens) {
  const now = performance.now();
  const parts = [`${tokens} tokens in ${((now - began) / 1000).toFixed(1)} s`];
  if (first) parts.push(`the first after ${Math.round(first - began)} ms`);
  if (tokens > 1 && now > first) {
    parts.push(`${((1000 * (tokens - 1)) / (now - first)).toFixed(1)} tokens/s`);
  }
  return parts.join(", ");
}
