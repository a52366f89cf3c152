// Runs one case with @grpc/grpc-js against the tests' Probe service, and prints what it saw as JSON:
//     node client.mjs HOST:PORT CASE [ARGUMENT...]
// A line on standard input tells the cases that wait for it that the server has got their call.
import grpc from "@grpc/grpc-js";
import { once } from "node:events";

const [target, name, ...rest] = process.argv.slice(2);
const asIs = (bytes) => bytes;
let client = connect();

function connect(options = {}) {
  return new grpc.Client(target, grpc.credentials.createInsecure(), {
    "grpc.max_receive_message_length": -1,
    "grpc.max_send_message_length": -1,
    "grpc.enable_http_proxy": 0,
    ...options,
  });
}

const pathOf = (method) => (method.startsWith("/") ? method : `/test.Probe/${method}`);

// A call whose only reply comes by callback; `start` gets the callback.
function replying(start) {
  let call;
  const reply = new Promise((resolve) => {
    call = start((error, message) => resolve(error ? [] : [message]));
  });
  return Object.assign(call, { reply });
}

const unary = (method, message, options = {}, metadata = new grpc.Metadata()) =>
  replying((done) =>
    client.makeUnaryRequest(
      pathOf(method), asIs, asIs, Buffer.from(message), metadata, options, done,
    ),
  );
const clientStream = (method) =>
  replying((done) => client.makeClientStreamRequest(pathOf(method), asIs, asIs, done));
const serverStream = (method, message) =>
  client.makeServerStreamRequest(pathOf(method), asIs, asIs, Buffer.from(message));
const bothStream = (method) => client.makeBidiStreamRequest(pathOf(method), asIs, asIs);

const plain = (metadata) =>
  Object.fromEntries(
    Object.entries(metadata.getMap()).map(([key, value]) => [
      key,
      Buffer.isBuffer(value) ? value.toString("hex") : value,
    ]),
  );

// The status of a call, its metadata, and its messages as text.
async function outcome(call, onMessage = () => {}) {
  const messages = [];
  let headers = {};
  call.on("metadata", (metadata) => (headers = plain(metadata)));
  call.on("error", () => {}); // it is in the status
  const happens = (event) => new Promise((resolve) => call.on(event, resolve));
  if (!call.reply) {
    call.on("data", (message) => {
      messages.push(message.toString());
      onMessage(messages.length);
    });
  }
  const [status, reply] = await Promise.all([happens("status"), call.reply ?? happens("end")]);
  messages.push(...(reply ?? []).map(String));
  const { code, details, metadata } = status;
  return { code, details, headers, messages, trailers: plain(metadata) };
}

const numbers = Array.from({ length: 100 }, (_, number) => String(number));

function someMetadata() {
  const metadata = new grpc.Metadata();
  metadata.set("key", "value");
  metadata.set("raw-bin", Buffer.from([0, 255]));
  return metadata;
}

const cases = {
  call: (method, message) => outcome(unary(method, message)),

  async size(bytes) {
    const message = Buffer.alloc(Number(bytes), "x");
    const { code, messages } = await outcome(unary("Echo", message));
    return { code, same: messages.length === 1 && messages[0] === message.toString() };
  },

  clientStreaming() {
    const call = clientStream("Join");
    for (const number of numbers) call.write(Buffer.from(number));
    call.end();
    return outcome(call);
  },

  serverStreaming: () => outcome(serverStream("Repeat", "5,50")),

  pingPong() {
    const call = bothStream("EchoAll");
    call.write(Buffer.from("0"));
    return outcome(call, (answers) => {
      if (answers < 20) call.write(Buffer.from(String(answers)));
      else call.end();
    });
  },

  emptyStream() {
    const call = bothStream("EchoAll");
    call.end();
    return outcome(call);
  },

  cancelAfterBegin() {
    const call = clientStream("Join");
    setImmediate(() => call.cancel());
    return outcome(call);
  },

  async cancelWhenTold() {
    const call = unary("Hang", "");
    once(process.stdin, "data").then(() => call.cancel());
    return [await outcome(call), await outcome(unary("Echo", "next"))];
  },

  async cancelAfterFirstResponse() {
    const call = serverStream("Repeat", "1000,1000000");
    const cancelled = await outcome(call, () => call.cancel());
    return [cancelled, await outcome(unary("Echo", "next"))];
  },

  deadline: (ms) => outcome(unary("Hang", "", { deadline: Date.now() + Number(ms) })),

  sendMetadata: () => outcome(unary("Echo", "x", {}, someMetadata())),

  receiveMetadata() {
    const call = bothStream("EchoAll");
    call.end(Buffer.from("x"));
    return outcome(call);
  },

  compressed(algorithm, bytes) {
    client.close();
    client = connect({
      "grpc.default_compression_algorithm": grpc.compressionAlgorithms[algorithm],
    });
    return cases.size(bytes);
  },

  async manyAtOnce(count) {
    const calls = Array.from({ length: Number(count) }, (_, n) => unary("Echo", String(n)));
    const outcomes = await Promise.all(calls.map((call) => outcome(call)));
    return outcomes.map(({ messages }) => messages[0]);
  },
};

console.log(JSON.stringify(await cases[name](...rest)));
client.close();
process.stdin.destroy();
