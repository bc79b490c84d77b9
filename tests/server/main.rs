//! The program as its users meet it: a real process, real sockets, real signals.
//!
//! Every test starts its own server ([`fixture::Server`]) and, when the server is dropped, finds out whether anything
//! was left behind: a permit, a stream, a running or waiting sequence, a held block, an exit status that is not 0.
//! No test asserts a speed; every time here is a generous bound against hanging.

mod admission;
mod agreement;
mod chat;
mod commands;
mod completions;
mod crowd;
mod demo;
mod deploy;
mod drills;
mod errors;
mod fixture;
mod idle;
mod k6;
mod keys;
mod lanes;
mod leaving;
mod lifecycle;
mod metrics;
mod openapi;
mod protobuf;
mod proxy;
mod readiness;
mod sampling;
mod scripts;
mod sdk;
mod slow;
mod speculation;
mod storm;
mod telemetry;
mod text;
