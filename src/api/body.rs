//! A request's body, read within bounds: `server.max_body_bytes`, and `server.read_timeout_s` for all of it, so that a
//! client that sends a byte now and then holds nothing for long.

use std::ops::Deref;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::future::{FutureExt, LocalBoxFuture};

use super::error::ApiError;
use crate::base::error::Error;

/// `server.read_timeout_s`.
#[derive(Debug, Clone, Copy)]
pub struct ReadTimeout(pub Duration);

pub struct Body(web::Bytes);

impl FromRequest for Body {
    type Error = actix_web::Error;
    type Future = LocalBoxFuture<'static, Result<Self, Self::Error>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let limit = request.app_data::<web::Data<ReadTimeout>>().expect("installed by the server").0;
        let read = web::Bytes::from_request(request, payload);
        async move {
            match tokio::time::timeout(limit, read).await {
                Ok(bytes) => bytes.map(Self),
                Err(_) => Err(ApiError(Error::read_timeout(limit.as_secs())).into()),
            }
        }
        .boxed_local()
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
