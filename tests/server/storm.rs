//! A thousand clients that leave, at any moment and in any way: the batch goes on, others notice nothing, nothing stays.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{
    CHAT, Connection, Goodbye, Launch, Proxy, Request, Server, chat, choice_text, eventually, leave, nginx, with,
};

const NUM_LEAVERS: usize = 1000;
const NUM_THREADS: usize = 16;
/// Requests at once of the leavers' key: more than there ever are, few enough to be counted afterwards.
const CONCURRENCY: usize = 48;

/// Slow enough that no leaver's answer ends by itself; few places, so that many leave while they wait.
fn launch() -> Launch {
    Launch::fake("fake:decode_us_per_step=1000").set("scheduler.max_running=8")
}

#[test]
fn a_thousand_leave() {
    let launch = launch().arg("--lanes").arg("2").keyed();
    let key = launch.new_key(&format!("--concurrency {CONCURRENCY}"));
    let server = launch.start();
    let expected = bystander(&server);
    let num_files = num_files_at_rest(&server);
    storm(&server, server.address, &key, &expected);
    holds_nothing(&server, &key, num_files);
}

#[test]
fn a_thousand_leave_behind_nginx() {
    let Some(nginx) = nginx() else { return };
    let launch = launch().keyed();
    let key = launch.new_key(&format!("--concurrency {CONCURRENCY}"));
    let server = launch.start();
    let proxy = Proxy::start(nginx, &[server.address], &[]);
    let expected = bystander(&server);
    let num_files = num_files_at_rest(&server);
    storm(&server, proxy.address, &key, &expected);
    // nginx keeps some connections for later.
    drop(proxy);
    holds_nothing(&server, &key, num_files);
}

/// What a client gets who stays.
fn bystander(server: &Server) -> String {
    let mut stream = server.stream(CHAT, &chat(json!({"stream": true, "max_tokens": 1000, "seed": 7})));
    let chunks = stream.rest();
    assert_eq!(chunks.last().expect("a chunk")["choices"][0]["finish_reason"], "length");
    choice_text(&chunks, 0)
}

fn num_files_at_rest(server: &Server) -> usize {
    server.wait_idle();
    let mut num_files = 0;
    // Connections of the questions themselves are closed a moment after their answers.
    let rests = eventually(|| std::mem::replace(&mut num_files, server.num_open_files()) == server.num_open_files());
    assert!(rests);
    num_files
}

/// Lets the leavers loose on an address, while others stay from the first to the last.
fn storm(server: &Server, address: SocketAddr, key: &str, expected: &str) {
    // Held by each leaver thread; it is free again when the last one has ended, in whatever way.
    let token = Arc::new(());
    thread::scope(|scope| {
        let leavers = (0..NUM_THREADS).map(|i| {
            let (token, mut chance) = (token.clone(), Chance(i as u64));
            scope.spawn(move || {
                let mut half_closed = Vec::new();
                for _ in (i..NUM_LEAVERS).step_by(NUM_THREADS) {
                    half_closed.extend(visit(address, key, &mut chance));
                }
                drop((half_closed, token));
            })
        });
        let leavers: Vec<_> = leavers.collect();
        let stays = token.clone();
        scope.spawn(move || {
            // This thread and the test itself hold one each.
            while Arc::strong_count(&stays) > 2 {
                assert_eq!(bystander(server), expected);
            }
        });
        while leavers.iter().any(|leaver| !leaver.is_finished()) {
            let before = server.metric("garrick_steps_total");
            server.wait_for("garrick_steps_total", |steps| steps > before);
        }
    });
}

fn holds_nothing(server: &Server, key: &str, num_files: usize) {
    server.wait_idle();
    let comes_back = eventually(|| server.num_open_files() <= num_files);
    assert!(comes_back, "{} files are open, before it were {num_files}", server.num_open_files());
    assert!(server.metric("garrick_finished_total{reason=\"cancelled\"}") > 100.0, "most came as far as a lane");
    assert_eq!(server.metric("garrick_finished_total{reason=\"failed\"}"), 0.0);
    assert_eq!(server.metric("garrick_stream_stalls_total"), 0.0);
    // Every lease has come back: the key is good for as many as it ever was.
    let request = || Request::post(CHAT, &endless(json!({"stream": true}))).key(key);
    let held: Vec<_> = (0..CONCURRENCY).map(|_| server.connect().stream(&request())).collect();
    server.ask(&request()).error(429);
    drop(held);
}

fn endless(extra: Value) -> Value {
    with(chat(json!({"max_tokens": 7000})), extra)
}

/// One client: comes, waits for something, leaves. The connection is still there if it closed one direction only.
fn visit(address: SocketAddr, key: &str, chance: &mut Chance) -> Option<Connection> {
    let prompt = "Hello ".repeat(1 + chance.below(100));
    let moment = chance.below(5);
    // A whole answer would never come, so who waits for a part of it has it streamed.
    let streamed = moment >= 3 || chance.below(4) > 0;
    let extra = json!({
        // Half of them may leave in the very moment when their answer ends.
        "max_tokens": if chance.below(2) == 0 { 7000 } else { 1 + chance.below(10) },
        "stream": streamed, "n": 1 + chance.below(3), "messages": [{"role": "user", "content": prompt}],
    });
    let request = Request::post(CHAT, &endless(extra)).key(key);
    let bytes = request.bytes();
    let mut connection = Connection::open(address);
    match moment {
        // While it sends: in the head, in the body, or just before the last byte.
        0 => connection.send_bytes(&bytes[..chance.below(bytes.len())]),
        // Having asked, at once.
        1 => connection.send(&request),
        // While it waits for a place, is being worked on, or for a whole answer. A random time is the point here.
        2 => {
            connection.send(&request);
            thread::sleep(Duration::from_millis(chance.below(40) as u64));
        }
        // Somewhere in the answer, most often within an event.
        3 => {
            connection.send(&request);
            let mut some = vec![0; 1 + chance.below(2000)];
            let read = connection.socket().read(&mut some).expect("an answer");
            assert!(read > 0, "the server has not closed the connection");
        }
        // Between two events.
        _ => {
            let mut stream = connection.stream(&request);
            (0..=chance.below(6)).all(|_| stream.next().is_some());
            connection = stream.into_connection();
        }
    }
    leave(connection, Goodbye::ALL[chance.below(3)])
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same storm on every run, as far as threads allow.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}
