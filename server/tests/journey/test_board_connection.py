"""The board's line to the server in real Chromium, against a played server: what is lost comes back by itself."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from servers import CHROMIUM_FLAGS

pytestmark = pytest.mark.browser

# One student, one cell; the played server counts what the board asks of it and keeps its newest socket in `wire`.
PLAY = """
async () => {
  const calls = [], sent = [], links = [], refused = [];
  const server = { seq: 5, epoch: "e1", pos: 0, answer: null };
  globalThis.fetch = async (path, { method }) => {
    calls.push(method + " " + path);
    const [status, body] = server.answer?.(path) ?? [200, path.endsWith("/tickets") ? { ticket: "t1" } : {
      schema: 1, epoch: server.epoch, seq: server.seq, at: Date.now(),
      course: { id: "c", title: "t", time_zone: "UTC", join_code: "K7P4", is_demo: false },
      notebook: null, notebooks: [], counts: {}, median: null, connected: 1, cells: [{ id: "a", idx: 0, title: null }],
      students: [{
        i: 0, id: "u", name: "n", num: "1", seat: null, team: null, s: "0", pos: server.pos, st: "ok", since: 0,
      }],
      alerts: [], h: { lag_ms: 100, received: 1, stored: 1 },
    }];
    return new Response(JSON.stringify(body), { status });
  };
  const wires = [];
  globalThis.WebSocket = class {
    static OPEN = 1;
    constructor(url) { this.url = url; this.readyState = 0; wires.push(this); }
    accept() { this.readyState = 1; this.onopen(); this.say({ t: "hello", epoch: server.epoch, seq: server.seq }); }
    say(message) { this.onmessage({ data: JSON.stringify(message) }); }
    send(text) { sent.push(JSON.parse(text)); }
    close(code) { this.readyState = 3; this.onclose({ code }); }
  };
  const { Connection } = await import("/js/connection.js");
  const board = new Connection("c", {
    onState: (state) => (play.state = state),
    onLink: (link) => links.push(link),
    onRefused: (error) => refused.push(error.status),
  });
  globalThis.play = {
    calls, sent, links, refused, server, wires, board,
    frame: (seq, pos) => ({ t: "d", seq, at: Date.now(), p: [[0, pos]] }),
    wire: () => wires.at(-1),
    see: () => ({ seq: play.state.seq, pos: play.state.rows[0].pos, phase: board.link.phase }),
  };
  board.start();
}
"""


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, web_url: str) -> Iterator[Page]:
    """A page on which the board's connection has just been started, with a clock that the test winds."""
    page = browser.new_page()
    page.clock.install()
    page.goto(f"{web_url}/messages/en.json")
    page.evaluate(PLAY)
    wait_for_wires(page, 1)
    yield page
    page.close()


def wait_for_wires(page: Page, count: int) -> None:
    page.wait_for_function(f"play.wires.length === {count}", polling=20, timeout=10_000)


def test_it_says_hello_with_its_ticket_and_place_and_follows_the_frames(page: Page) -> None:
    page.evaluate(
        "play.wire().accept(); play.wire().say(play.frame(6, 3)); play.wire().say({ t: 'ping', at: Date.now() })"
    )
    assert page.evaluate("play.see()") == {"seq": 6, "pos": 3, "phase": "live"}
    assert page.evaluate("play.sent") == [
        {"t": "hello", "ticket": "t1", "epoch": "e1", "after_seq": 5, "notebook": None, "view": "board"},
        {"t": "pong"},
    ]
    assert page.evaluate("play.wire().url").endswith("/api/v1/courses/c/ws")
    assert page.evaluate("play.board.link.lagMs") >= 100  # the server's own part of the way is counted


def test_frames_in_the_wrong_order_are_put_right_without_asking_the_server(page: Page) -> None:
    page.evaluate("play.wire().accept(); for (const n of [7, 8, 6, 6]) play.wire().say(play.frame(n, n))")
    assert page.evaluate("play.see()") == {"seq": 8, "pos": 8, "phase": "live"}
    page.clock.run_for(3_000)
    assert page.evaluate("play.calls.length") == 2


def test_a_missed_frame_is_healed_from_a_snapshot_on_the_same_socket(page: Page) -> None:
    page.evaluate("play.wire().accept(); play.wire().say(play.frame(7, 7))")
    assert page.evaluate("play.see().seq") == 5
    page.evaluate("Object.assign(play.server, { seq: 9, pos: 9 })")
    page.clock.run_for(1_100)
    page.wait_for_function("play.sent.some((message) => message.t === 'resume')", polling=20, timeout=10_000)
    assert page.evaluate("play.see()") == {"seq": 9, "pos": 9, "phase": "live"}
    assert page.evaluate("play.sent.at(-1)") == {"t": "resume", "epoch": "e1", "after_seq": 9}
    assert page.evaluate("[play.wires.length, play.calls.filter((call) => call.includes('/live')).length]") == [1, 2]


def test_a_lost_line_keeps_what_was_shown_and_comes_back_where_it_was(page: Page) -> None:
    page.evaluate("play.wire().accept(); play.wire().say(play.frame(6, 4)); play.wire().close(1012)")
    assert page.evaluate("play.see()") == {"seq": 6, "pos": 4, "phase": "reconnecting"}
    page.clock.run_for(1_000)
    wait_for_wires(page, 2)
    page.evaluate("play.wire().accept(); play.wire().say(play.frame(7, 5))")
    assert page.evaluate("play.see()") == {"seq": 7, "pos": 5, "phase": "live"}
    assert page.evaluate("play.sent.at(-1).after_seq") == 6
    assert page.evaluate("play.calls.filter((call) => call.includes('/live')).length") == 1


def test_a_server_of_another_life_is_read_anew(page: Page) -> None:
    page.evaluate(
        "play.wire().accept(); play.wire().close(1006); Object.assign(play.server, { epoch: 'e2', seq: 0, pos: 1 })"
    )
    page.clock.run_for(1_000)
    wait_for_wires(page, 2)
    page.evaluate("play.wire().accept()")
    page.wait_for_function("play.sent.some((message) => message.t === 'resume')", polling=20, timeout=10_000)
    assert page.evaluate("play.sent.at(-1)") == {"t": "resume", "epoch": "e2", "after_seq": 0}
    assert page.evaluate("play.see()") == {"seq": 0, "pos": 1, "phase": "live"}


def test_a_snapshot_that_comes_on_the_line_is_taken_and_its_frames_follow(page: Page) -> None:
    """Each question may be answered by another process than the one that holds the line."""
    page.evaluate("play.server.epoch = 'e2'")
    page.evaluate("play.wire().accept()")
    page.wait_for_function("play.sent.some((message) => message.t === 'resume')", polling=20, timeout=10_000)
    asked = page.evaluate("play.calls.length")
    page.evaluate(
        """async () => {
          play.server.seq = 40;
          const snapshot = await (await fetch("/live", { method: "TEST" })).json();
          play.wire().say({ t: "snapshot", snapshot: { ...snapshot, epoch: "e3" } });
          play.wire().say(play.frame(41, 1));
        }"""
    )
    assert page.evaluate("play.see()") == {"seq": 41, "pos": 1, "phase": "live"}
    page.clock.run_for(3_000)
    assert page.evaluate("play.calls.length") == asked + 1, "nothing was asked for but by this test"


def test_tries_grow_apart_while_the_server_is_away_and_a_refusal_ends_them(page: Page) -> None:
    page.evaluate("play.wire().accept(); play.server.answer = () => [503, { code: 'NB-0000', retry_after_s: 2 }]")
    page.evaluate("play.calls.length = 0; play.wire().close(1006)")
    page.clock.run_for(60_000)
    tries = page.evaluate("play.calls.length")
    assert 4 <= tries <= 30
    page.evaluate("play.server.answer = () => [403, { code: 'NB-1103' }]")
    page.clock.run_for(20_000)
    page.wait_for_function("play.refused.length === 1", polling=20, timeout=10_000)
    before = page.evaluate("play.calls.length")
    page.clock.run_for(60_000)
    assert page.evaluate("[play.refused, play.calls.length]") == [[403], before]


@pytest.mark.parametrize(("close_code", "status"), [(4401, 401), (4403, 403)])
def test_a_closed_door_is_said_and_not_knocked_at_again(page: Page, close_code: int, status: int) -> None:
    page.evaluate(f"play.wire().accept(); play.wire().close({close_code})")
    page.clock.run_for(30_000)
    assert page.evaluate("[play.refused, play.wires.length]") == [[status], 1]


def test_silence_is_called_stale_and_then_mended(page: Page) -> None:
    page.evaluate("play.wire().accept()")
    page.clock.run_for(27_000)
    assert page.evaluate("play.see().phase") == "stale"
    page.evaluate("play.wire().say({ t: 'ping', at: Date.now() })")
    assert page.evaluate("play.see().phase") == "live"
    page.clock.run_for(48_000)
    wait_for_wires(page, 2)
