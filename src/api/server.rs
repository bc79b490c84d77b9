//! The HTTP server: routes, limits, workers.

use std::future::ready;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::http::Method;
use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::middleware::from_fn;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, Resource, Route, web};
use actix_web_lab::middleware::CatchPanic;
use socket2::{Domain, Protocol, Socket, Type};

use super::body::ReadTimeout;
use super::connection::Connection;
use super::edge::{self, MaxBody, Open};
use super::error::ApiError;
use super::{chat, completions, docs, health, models, text};
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

/// Connections that the system holds until a worker accepts them; the system's own bound (somaxconn) may be lower. std's
/// 128 overflows when a thousand clients come at once, and who does not fit tries again a second later.
const BACKLOG: i32 = 4096;

pub fn bind(server: &config::Server) -> std::io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(server.listen), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&server.listen.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok(Bound { listener, address })
}

impl Bound {
    /// Runs until stopped. Signals are the caller's: a drain comes first.
    pub fn serve(self, services: Arc<Services>, edge: Edge) -> std::io::Result<Server> {
        let services = web::Data::from(services);
        let open = web::Data::new(Open { metrics: edge.metrics_open, docs: edge.server.docs });
        let max_body_bytes = edge.server.max_body_bytes;
        let max_body = web::Data::new(MaxBody(max_body_bytes));
        let read_timeout = Duration::from_secs(edge.server.read_timeout_s);
        let body_timeout = web::Data::new(ReadTimeout(read_timeout));
        let server = HttpServer::new(move || {
            App::new()
                .app_data(services.clone())
                .app_data(open.clone())
                .app_data(max_body.clone())
                .app_data(body_timeout.clone())
                .app_data(web::PayloadConfig::new(max_body_bytes))
                .wrap(from_fn(edge::authenticate))
                .wrap(CatchPanic::default())
                .wrap(from_fn(edge::identify))
                .configure(routes)
                .configure(|app| {
                    if open.docs {
                        docs_routes(app)
                    }
                })
                .default_service(web::to(not_found))
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
    app.service(at("/v1/chat/completions", [(Method::POST, web::to(chat::create))]))
        .service(at("/v1/chat/completions/render", [(Method::POST, web::to(chat::render))]))
        .service(at("/v1/completions", [(Method::POST, web::to(completions::create))]))
        .service(at("/v1/models", [(Method::GET, web::to(models::list))]))
        .service(at("/v1/models/{id:.+}", [(Method::GET, web::to(models::get))]))
        .service(at("/tokenize", [(Method::POST, web::to(text::tokenize))]))
        .service(at("/detokenize", [(Method::POST, web::to(text::detokenize))]))
        // Some load balancers ask with HEAD.
        .service(at("/health/live", [(Method::GET, web::to(health::live)), (Method::HEAD, web::to(health::live))]))
        .service(at("/health/ready", [(Method::GET, web::to(health::ready)), (Method::HEAD, web::to(health::ready))]))
        .service(at("/metrics", [(Method::GET, web::to(health::prometheus))]));
}

fn docs_routes(app: &mut web::ServiceConfig) {
    app.service(at("/openapi.json", [(Method::GET, web::to(docs::document))]))
        .service(at("/docs", [(Method::GET, web::to(docs::page))]));
}

/// A path and what answers each of its methods; any other method is refused with the list of these.
fn at<const N: usize>(path: &'static str, methods: [(Method, Route); N]) -> Resource {
    let allowed = methods.each_ref().map(|(method, _)| method.as_str()).join(", ");
    let mut resource = web::resource(path);
    for (method, route) in methods {
        resource = resource.route(route.method(method));
    }
    resource.default_service(web::to(move |request: HttpRequest| ready(wrong_method(&request, &allowed))))
}

fn wrong_method(request: &HttpRequest, allowed: &str) -> HttpResponse {
    let error = Error::method_not_allowed(request.method().as_str(), allowed);
    let mut response = HttpResponse::from_error(ApiError(error));
    let allowed = HeaderValue::from_str(allowed).expect("names of methods");
    response.headers_mut().insert(ALLOW, allowed);
    response
}

async fn not_found(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let path: String = request.path().chars().take(200).collect();
    Err(Error::not_found(format!("no route answers {} {path}", request.method())).into())
}
