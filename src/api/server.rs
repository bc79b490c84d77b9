//! The HTTP server: routes, limits, workers.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, web};

use super::body::ReadTimeout;
use super::connection::Connection;
use super::edge::{self, MaxBody, MetricsOpen};
use super::error::ApiError;
use super::{chat, completions, health, models, text};
use crate::actors::services::Services;
use crate::base::config;
use crate::base::error::Error;

/// What the HTTP side takes from the configuration.
#[derive(Debug, Clone)]
pub struct Edge {
    pub server: config::Server,
    pub num_workers: usize,
    pub metrics_open: bool,
}

/// A port that is bound but not served yet.
pub struct Bound {
    pub listener: TcpListener,
    pub address: std::net::SocketAddr,
}

pub fn bind(server: &config::Server) -> std::io::Result<Bound> {
    let listener = TcpListener::bind(server.listen)?;
    let address = listener.local_addr()?;
    Ok(Bound { listener, address })
}

impl Bound {
    /// Runs until stopped. Signals are the caller's: a drain comes first.
    pub fn serve(self, services: Arc<Services>, edge: Edge) -> std::io::Result<Server> {
        let services = web::Data::from(services);
        let metrics_open = web::Data::new(MetricsOpen(edge.metrics_open));
        let max_body_bytes = edge.server.max_body_bytes;
        let max_body = web::Data::new(MaxBody(max_body_bytes));
        let read_timeout = Duration::from_secs(edge.server.read_timeout_s);
        let body_timeout = web::Data::new(ReadTimeout(read_timeout));
        let server = HttpServer::new(move || {
            App::new()
                .app_data(services.clone())
                .app_data(metrics_open.clone())
                .app_data(max_body.clone())
                .app_data(body_timeout.clone())
                .app_data(web::PayloadConfig::new(max_body_bytes))
                .wrap(from_fn(edge::authenticate))
                .wrap(from_fn(edge::identify))
                .configure(routes)
        })
        .workers(edge.num_workers)
        .max_connections((edge.server.max_connections / edge.num_workers).max(1))
        .keep_alive(Duration::from_secs(edge.server.keep_alive_s))
        // For the head; the body has as long again.
        .client_request_timeout(read_timeout)
        // Else the kernel holds a token's event back until the client has acknowledged the one before: 40 ms with Linux.
        .tcp_nodelay(true)
        // Without this a client that closed while its stream is silent is never noticed.
        .h1_allow_half_closed(false)
        .on_connect(Connection::remember)
        .disable_signals()
        .shutdown_timeout(1)
        .listen(self.listener)?;
        Ok(server.run())
    }
}

fn routes(app: &mut web::ServiceConfig) {
    app.route("/v1/chat/completions", web::post().to(chat::create))
        .route("/v1/chat/completions/render", web::post().to(chat::render))
        .route("/v1/completions", web::post().to(completions::create))
        .route("/v1/models", web::get().to(models::list))
        .route("/v1/models/{id:.+}", web::get().to(models::get))
        .route("/tokenize", web::post().to(text::tokenize))
        .route("/detokenize", web::post().to(text::detokenize))
        .route("/health/live", web::get().to(health::live))
        .route("/health/ready", web::get().to(health::ready))
        // Some load balancers ask with HEAD.
        .route("/health/live", web::head().to(health::live))
        .route("/health/ready", web::head().to(health::ready))
        .route("/metrics", web::get().to(health::prometheus))
        .default_service(web::to(not_found));
}

async fn not_found(request: actix_web::HttpRequest) -> Result<actix_web::HttpResponse, ApiError> {
    let path: String = request.path().chars().take(200).collect();
    Err(Error::not_found(format!("no route answers {} {path}", request.method())).into())
}
