// Joins one room of the local stack and publishes to it. A program of your own needs no more than this, and a reconnect.
const element = (id) => document.getElementById(id);
const MAX_LINES = 500;

let socket;
let room;

function say(text) {
  element("state").textContent = text;
}

function show(text, kind) {
  const line = document.createElement("li");
  line.textContent = text;
  line.className = kind;
  element("messages").prepend(line);
  while (element("messages").childElementCount > MAX_LINES) element("messages").lastChild.remove();
}

// Responses are JSON objects with the type ok or error; every other message is data that somebody published.
function response(text) {
  try {
    const value = JSON.parse(text);
    return value?.type === "ok" || value?.type === "error" ? value : undefined;
  } catch {
    return undefined;
  }
}

function receive(event) {
  const reply = response(event.data);
  if (!reply) {
    show(event.data, "message");
  } else if (reply.type === "error") {
    say(`Error ${reply.code}: ${reply.message}`);
  } else if (reply.action === "join") {
    // only now is this connection a member, and may publish
    say(`A member of ${reply.room}.`);
    element("publish").querySelector("button").disabled = false;
    element("data").focus();
  }
}

element("connect").addEventListener("submit", (event) => {
  event.preventDefault();
  const before = socket;
  socket = undefined;
  before?.close();
  room = element("room").value;
  const token = element("token").value.trim();
  const made = new WebSocket(`ws://${location.host}/local`, token ? ["gatecast.v1", token] : ["gatecast.v1"]);
  socket = made;
  say("Connecting …");
  element("publish").querySelector("button").disabled = true;
  made.addEventListener("open", () => made.send(JSON.stringify({ action: "join", room })));
  made.addEventListener("message", receive);
  made.addEventListener("close", (closed) => {
    if (made !== socket) return;
    element("publish").querySelector("button").disabled = true;
    say(`Not connected (code ${closed.code}). With AUTHORIZER=required, paste a token of "make token".`);
  });
});

element("publish").addEventListener("submit", (event) => {
  event.preventDefault();
  socket.send(JSON.stringify({ action: "publish", room, data: element("data").value }));
  element("data").value = "";
});
