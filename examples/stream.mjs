// Streams an answer to the terminal. When its connection is lost, it goes on where it stopped, through any bridge:
//   node examples/stream.mjs "Why is the sky blue?" [http://127.0.0.1:8001 [http://another-bridge:8001]]

const [question, ...named] = process.argv.slice(2);
const bridges = named.length > 0 ? named : ["http://127.0.0.1:8001"];

async function* events(response) {
  let rest = "";
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const blocks = (rest + text).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: ?(.*)/s, 2)));
      if (fields.data) yield { id: fields.id, name: fields.event, data: JSON.parse(fields.data) };
    }
  }
}

async function ask() {
  const body = JSON.stringify({ messages: [{ role: "user", content: question }], stream: true });
  const headers = { "Content-Type": "application/json", "X-Sidecar-Detach": "true" }; // it goes on without us
  const response = await fetch(`${bridges[0]}/api/chat`, { method: "POST", headers, body });
  if (!response.ok) throw new Error(await response.text());
  return response;
}

async function attach(id, lastSeen) {
  const headers = lastSeen ? { "Last-Event-ID": lastSeen } : {};
  for (let tries = 1; tries <= 40; tries++) {
    const url = `${bridges[tries % bridges.length]}/api/requests/${id}/events`;
    const response = await fetch(url, { headers }).catch(() => null);
    if (response?.status === 200) return response;
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
  throw new Error("no bridge answers any more");
}

let response = await ask();
const id = response.headers.get("X-Sidecar-Request-Id");
let [lastSeen, ending] = [null, null];
for (let connections = 1; !ending; connections++) {
  if (connections > 1) response = await attach(id, lastSeen);
  try {
    for await (const event of events(response)) {
      if (!event.id) continue; // the bridge says that it has lost its broker, and ends the stream
      lastSeen = event.id;
      if (event.name === "delta") process.stdout.write(event.data.text);
      if (event.name === "restarted") process.stdout.write("\n[another model begins anew]\n");
      if (event.name === "final" || event.name === "error") ending = event;
    }
  } catch (error) {
    console.error(`[connection lost: ${error.cause?.message ?? error.message}]`);
  }
}
process.stdout.write("\n");
if (ending.name === "error") throw new Error(ending.data.error.message);
console.error(`[${ending.data.model}, $${ending.data.cost_usd}]`);
