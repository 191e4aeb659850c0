"""The open questions, in the order in which they are asked. A test compares the texts with docs/first-account.md."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from deploy.verify.observation import Observation
from deploy.verify.probes import clocks, limits, posts, routes
from deploy.verify.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question: why it matters, what Gatecast assumes today, how it is asked, and the probe that asks it.

    A `long` one waits for many minutes on AWS. It is asked beside the others.
    """

    name: str
    question: str
    why: str
    assumed: str
    how: str
    probe: Callable[[Target], Awaitable[Observation]]
    long: bool = False


QUESTIONS: Final = (
    Question(
        name="ids",
        question="What does a post to a malformed, to an unknown and to a gone connection id get: 400, 403 or 410?",
        why="A wrong id must neither be retried for ever nor stop others",
        assumed="410 for unknown and gone ids; 400, 403 and 404 are final for one delivery only if other posts succeed",
        how="Posts to three malformed ids, a made-up one, and one whose client has disconnected",
        probe=posts.ids,
    ),
    Question(
        name="errors",
        question="What are the headers and bodies of 403, by cause?",
        why="The causes of 403 look alike by status",
        assumed="The status decides first; error type and first sentence are only reported",
        how="Posts with a wrong signature, a wrong clock, another Region, an unknown key, no signature, another stage",
        probe=posts.errors,
    ),
    Question(
        name="post-sizes",
        question="Is a post of 32 to 128 KB delivered whole, and in how many frames?",
        why="Payloads may have 131,072 bytes, and a frame is said to have 32 KB at most",
        assumed="Posts of up to 131,072 bytes are delivered, and a longer one gets 413, which is final",
        how="One post of each size, and the frames that its client receives",
        probe=posts.post_sizes,
    ),
    Question(
        name="slow-client",
        question="When is a client that does not read rejected, and what are the headers and body of its 429?",
        why="Both meanings of 429 look alike by status",
        assumed="429 once a buffer of unknown size is full, for this client alone",
        how="Posts of 128 KB to a client that does not read, until one is rejected",
        probe=limits.slow_client,
    ),
    Question(
        name="post-in-connect",
        question="What does a post to a connection get while its $connect still runs?",
        why="A 410 must not remove a connection that is being established",
        assumed="410; those of connections younger than 30 s remove nothing",
        how="Posts while $connect is kept from returning for some seconds, and one afterwards",
        probe=posts.post_in_connect,
    ),
    Question(
        name="delete",
        question="Which code does a client see after DELETE, and does $disconnect follow?",
        why="Clients that do not read are closed this way",
        assumed="Both are assumed, neither is needed: what is left expires, or is removed on 410",
        how="DELETE of an open connection; its close code, a post afterwards, and the event of $disconnect",
        probe=posts.delete,
    ),
    Question(
        name="response-sizes",
        question="What becomes of a route's response of 32, 64 and 128 KB: is it delivered, cut or an error?",
        why="A long response must not end the connection",
        assumed="Routes send no long responses",
        how="A route whose function returns as many bytes as the client asks for",
        probe=routes.sizes,
    ),
    Question(
        name="quiet",
        question="Is a client left in peace if a route with a response returns nothing, or an empty body?",
        why="Deployments may want no responses",
        assumed="Nothing: the parameter Replies removes the route responses instead",
        how="A route whose function returns nothing, no body, and an empty body",
        probe=routes.quiet,
    ),
    Question(
        name="mock",
        question="Does a MOCK integration respond on a WebSocket route, and can it repeat a field of the message?",
        why="A ping does without a function, and clients recognize its response by its ref",
        assumed="It responds; where ref is missing, clients must not need it. With PingFunction a function responds",
        how="A route with a MOCK integration, an integration response and a route response; pings with and without ref",
        probe=routes.mock,
    ),
    Question(
        name="authorizer",
        question="Without identity sources, is the authorizer invoked wherever a token is, and without one?",
        why="Otherwise clients are rejected before the authorizer sees them",
        assumed="It is invoked every time: the template lists no identity source",
        how="Three clients, and what a function learns of them from the authorizer's context",
        probe=routes.authorizer,
    ),
    Question(
        name="order",
        question="Do two messages that a client sends back to back overtake each other?",
        why="Nothing may rely on an order that does not exist",
        assumed="They may: clients wait for the response",
        how="A message that takes a second and one that takes none; then 20 messages back to back",
        probe=routes.order,
    ),
    Question(
        name="url-length",
        question="What does a URL of more than 4,096 characters get?",
        why="A token in the query makes the URL long",
        assumed="Up to 4,096 characters are accepted; tokens belong into the subprotocol",
        how="Upgrade requests with URLs of 4,000 to 8,000 characters",
        probe=routes.url_length,
    ),
    Question(
        name="compression",
        question="Does API Gateway compress WebSocket messages if a client offers it?",
        why="Clients and bills count the bytes of frames",
        assumed="No: the emulator does not either",
        how="An upgrade request that offers permessage-deflate",
        probe=routes.compression,
    ),
    Question(
        name="throttle",
        question="Does a stage's or route's throttle count calls of @connections?",
        why="A limit on clients could throttle the workers",
        assumed="Limits of routes do not count them; there is no default of the stage",
        how="Two stages with a limit of 1 per second, one by default and one per route: 20 messages, then 20 posts",
        probe=limits.throttle,
    ),
    Question(
        name="idle",
        question="Do a client's pings, or posts to it, reset the ten-minute idle timer?",
        why="A client that only receives could be closed",
        assumed="Neither: clients send a message at least every nine minutes",
        how="Four connections for 13 minutes: silent, with pings, with posts, with messages",
        probe=clocks.idle,
        long=True,
    ),
    Question(
        name="keep-alive",
        question="How long does an idle connection to @connections stay open, and how does it end: FIN, RST, silence?",
        why="A post on a dead connection costs time",
        assumed="Any end: idle connections are closed after 240 s at most, and a request on a dead one is sent again",
        how="One connection that is only watched for 10 minutes, five that are used again after 30 s to 10 minutes",
        probe=clocks.keep_alive,
        long=True,
    ),
)
BY_NAME: Final = {question.name: question for question in QUESTIONS}
