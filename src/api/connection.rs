//! The socket behind a request, so that a reader who does not read can be cut.
//!
//! A response body is polled only while its socket takes bytes; a stalled client therefore cannot be ended from inside
//! its stream. Each connection keeps a duplicate of its socket's handle, with which both directions are shut down: the
//! next write fails, and actix-web drops the connection, the body and everything behind it.

use std::any::Any;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;

use actix_web::dev::Extensions;

/// A second handle of a connection's socket.
#[derive(Clone)]
pub struct Connection(Arc<TcpStream>);

impl Connection {
    /// For `HttpServer::on_connect`.
    pub fn remember(io: &dyn Any, data: &mut Extensions) {
        let Some(socket) = io.downcast_ref::<actix_web::rt::net::TcpStream>() else { return };
        match socket.as_fd().try_clone_to_owned() {
            Ok(handle) => drop(data.insert(Connection(Arc::new(TcpStream::from(handle))))),
            // Out of file descriptors: the stream then ends only when the kernel gives up on the peer.
            Err(error) => tracing::warn!(%error, "a connection cannot be cut if its reader stalls"),
        }
    }

    pub fn close(&self) {
        // An error means that it is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}
