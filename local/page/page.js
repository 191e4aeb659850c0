// Joins one room of the local stack and stays in it. After a lost connection it joins again; in a room with history it
// continues where it was: each message is shown once and in order, or it says that some are missing.
const MAX_LINES = 500;
const KEEP_ALIVE_MS = 540_000; // API Gateway closes a connection that sends nothing for ten minutes
const RETRY_MS = 3_000;
const GAP_MS = 10_000; // messages may arrive out of order: only a gap that stays is asked about

const element = (id) => document.getElementById(id);
const say = (text) => (element("state").textContent = text);

let socket;
let room;
let joined; // whether this page has been a member of the room: it then tries until it is one again
let position; // the offset up to which messages were shown; undefined before the join, null in a room without history
let early; // messages beyond a gap, by offset; null for an offset without a message
let timer;

function show(text, kind) {
  const line = document.createElement("li");
  line.textContent = text;
  line.className = kind;
  element("messages").prepend(line);
  while (element("messages").childElementCount > MAX_LINES) element("messages").lastChild.remove();
}

function showMessage({ from, data, json }) {
  show(`${from === undefined ? "" : `${from}: `}${data ?? JSON.stringify(json)}`, "message");
}

function send(request) {
  socket.send(JSON.stringify(request));
}

// Takes messages in any order, and repeated ones. Those without an offset are shown as they come; so are those of a room
// that got its history only after this page had joined.
function take(messages, skipped = []) {
  for (const message of messages) {
    if (message.offset === undefined || position === null) showMessage(message);
    else early.set(message.offset, message);
  }
  for (const [first, last] of skipped) {
    for (let offset = first; offset <= last; offset += 1) early.set(offset, null);
  }
  if (position) advance();
}

function advance() {
  for (const offset of early.keys()) if (offset <= position) early.delete(offset);
  for (let next = position + 1; early.has(next); next += 1) {
    if (early.get(next)) showMessage(early.get(next));
    early.delete(next);
    position = next;
  }
  if (early.size === 0) {
    clearTimeout(timer);
    timer = undefined;
  } else {
    timer ??= setTimeout(askForGap, GAP_MS * (1 + Math.random() / 2));
  }
}

function askForGap() {
  timer = undefined;
  if (socket?.readyState === WebSocket.OPEN) send({ action: "history", room, since: position });
}

// The response to a join or to a request for history: its messages are contiguous and end at its offset.
function resume({ offset, recovered, messages, more }) {
  if (offset === undefined) {
    position = null;
    return;
  }
  const before = position ?? 0;
  if (!recovered && before) show("Some messages are missing: they are no longer in the history.", "note");
  for (const message of messages) if (message.offset > before) showMessage(message);
  position = Math.max(before, offset);
  advance();
  if (more) send({ action: "history", room, since: position });
}

function receive(text) {
  const frame = JSON.parse(text);
  switch (frame.type) {
    case "messages":
      take(frame.messages, frame.skipped);
      break;
    case "presence":
      if (frame.joined.length) show(`${frame.joined.join(", ")} joined`, "note");
      if (frame.departed.length) show(`${frame.departed.join(", ")} departed`, "note");
      break;
    case "closed":
      joined &&= frame.retry;
      show(`The connection is being closed: ${frame.code}`, "note");
      break;
    case "error":
      say(`Error ${frame.code}: ${frame.message}`);
      if (frame.action === "history") advance(); // asks later, if there still is a gap
      if (frame.action === "join" && joined) socket.close(); // and joins from a new connection
      break;
    case "ok":
      if (frame.action === "join" || frame.action === "history") resume(frame);
      if (frame.action === "join") {
        // only now is this connection a member, and may publish
        joined = true;
        say(`A member of ${room}.`);
        element("publish").querySelector("button").disabled = false;
        element("data").focus();
      }
  }
}

function connect() {
  const token = element("token").value.trim();
  const made = new WebSocket(`ws://${location.host}/local`, token ? ["gatecast.v2", token] : ["gatecast.v2"]);
  let keepAlive;
  socket = made;
  say("Connecting …");
  element("publish").querySelector("button").disabled = true;
  made.addEventListener("open", () => {
    // without an authorizer nothing but `frames` says which dialect this connection speaks
    send({ action: "join", room, frames: 2, ...(position ? { since: position } : { last: 20 }) });
    keepAlive = setInterval(() => made.send('{"action":"ping"}'), KEEP_ALIVE_MS);
  });
  made.addEventListener("message", (event) => made === socket && receive(event.data));
  made.addEventListener("close", (closed) => {
    clearInterval(keepAlive);
    if (made !== socket) return;
    element("publish").querySelector("button").disabled = true;
    if (joined) {
      say(`The connection was lost (code ${closed.code}). Connecting again …`);
      setTimeout(() => made === socket && connect(), RETRY_MS * Math.random());
    } else {
      say(`Not connected (code ${closed.code}). With AUTHORIZER=required, paste a token of "make token".`);
    }
  });
}

element("connect").addEventListener("submit", (event) => {
  event.preventDefault();
  const before = socket;
  clearTimeout(timer);
  room = element("room").value;
  [joined, position, early, timer] = [false, undefined, new Map(), undefined];
  connect();
  before?.close();
});

element("publish").addEventListener("submit", (event) => {
  event.preventDefault();
  send({ action: "publish", room, data: element("data").value });
  element("data").value = "";
});
