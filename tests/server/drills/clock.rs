//! The wall clock jumps by hours, forwards and back, under a running server (libfaketime, which sits between the
//! program and the system's clock). What counts time counts on the monotonic clock, so nothing may notice but dates.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::fixture::{CHAT, Launch, Request, chat, eventually};

const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// A server whose wall clock is set by the file `offset`, as `+3h`.
fn with_false_clock(launch: Launch) -> Option<Launch> {
    let Some(library) = LIBRARIES.iter().find(|path| Path::new(path).exists()) else {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI has libfaketime");
        eprintln!("skipped: libfaketime is not installed (apt-get install libfaketime)");
        return None;
    };
    let offset = launch.dir().join("offset");
    std::fs::write(&offset, "+0").expect("a file");
    let offset = offset.to_str().expect("a UTF-8 path").to_owned();
    let launch = launch.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &offset);
    Some(launch.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1"))
}

#[test]
fn a_wall_clock_that_jumps_moves_dates_and_nothing_else() {
    let launch = Launch::fake("fake:decode_us_per_step=2000").set("auth.cache_ttl_s=1").keyed();
    let (free, bound) = (launch.new_key(""), launch.new_key("--rpm 3"));
    let Some(launch) = with_false_clock(launch) else { return };
    let server = launch.start();
    let mut stream = server.stream(CHAT, &chat(json!({"stream": true, "max_tokens": 2000})));
    stream.next().expect("it runs");
    let real = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64;
    let ask = |key: &str| server.ask(&Request::post(CHAT, &chat(json!({"max_tokens": 2}))).key(key));

    for (i, (offset, hours)) in [("+5h", 5), ("-7h", -7), ("+0", 0)].into_iter().enumerate() {
        std::fs::write(server.launch.dir().join("offset"), offset).expect("a file");
        let answer = ask(&free).ok();
        let away = answer["created"].as_i64().expect("a date") - real() - hours * 3600;
        assert!(away.abs() < 60, "{offset}: the date is {away} s from where it should be");
        // Three requests a minute, whatever the date says.
        assert_eq!(ask(&bound).status, 200, "{offset}: request {i} of the minute");
        stream.next().expect("it goes on");
        server.get("/health/ready").ok();
    }
    let refused = ask(&bound);
    refused.error(429);
    assert!((1..=61).contains(&refused.retry_after()), "{}", refused.retry_after());

    // Far in the future and the past a revoked key still ends within its second.
    for offset in ["+9h", "-9h"] {
        let key = server.launch.new_key("");
        ask(&key).ok();
        std::fs::write(server.launch.dir().join("offset"), offset).expect("a file");
        let list = server.launch.cli("keys list --json").stdout;
        let keys: serde_json::Value = serde_json::from_str(&list).expect("JSON");
        let id =
            keys.as_array().expect("a list").iter().find(|row| key.starts_with(row["prefix"].as_str().unwrap_or("?")));
        let id = id.expect("the key")["id"].as_str().expect("an id").to_owned();
        assert_eq!(server.launch.cli(&format!("keys revoke {id}")).code, Some(0));
        assert!(eventually(|| ask(&key).status == 401), "{offset}: a revoked key works on");
    }
    assert!(!server.log().contains("panic"), "{}", server.log());
}
