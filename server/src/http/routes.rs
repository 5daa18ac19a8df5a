//! Which path does what, and who may.

use super::options::Origins;
use super::state::State;
use super::{chat, completions, embeddings, responses, tokens};
use crate::api::error::ApiError;
use crate::metrics::Metrics;
use crate::page;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State as Shared};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All paths. With `checks_hosts` requests must call the server by a name of its own.
pub(super) fn router(state: &Arc<State>, checks_hosts: bool) -> Router {
    let locked = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(one_model))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/responses", post(responses::responses))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(wrong_method)
        .route_layer(from_fn_with_state(Arc::clone(state), unlock));
    let router = Router::new()
        .merge(locked)
        .route("/health", get(health))
        .route("/", get(asset))
        .route("/page/{*file}", get(asset))
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_path)
        .with_state(Arc::clone(state))
        .layer(CatchPanicLayer::custom(panicked));
    let router = match &state.options.origins {
        Origins::None => router,
        Origins::Any => router.layer(cors(AllowOrigin::any())),
        Origins::List(origins) => router.layer(cors(AllowOrigin::list(origins.iter().cloned()))),
    };
    let router = if checks_hosts { router.layer(from_fn_with_state(Arc::clone(state), check_host)) } else { router };
    router.layer(from_fn_with_state(Arc::clone(state), number))
}

/// What pages of other origins may do: the same as anybody, with a key but without cookies.
fn cors(origins: AllowOrigin) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, RETRY_AFTER])
        .max_age(Duration::from_secs(600))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = respond(&self.body());
        // All are made with statuses that there are.
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        if self.status == 401 {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// An answer in JSON.
pub(super) fn respond(value: &Value) -> Response {
    respond_text(value.to_string())
}

/// The same where it is written already.
pub(super) fn respond_text(text: String) -> Response {
    ([(CONTENT_TYPE, "application/json")], text).into_response()
}

/// Does work that takes the processor, apart from the threads that serve connections. Work that has not begun when nobody
/// waits for it any more is not done.
pub(super) async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    struct Waiting(AbortHandle);
    impl Drop for Waiting {
        fn drop(&mut self) {
            // Work that is done or under way does not hear of it.
            self.0.abort();
        }
    }
    let work = tokio::task::spawn_blocking(work);
    let _waiting = Waiting(work.abort_handle());
    match work.await {
        Ok(result) => result,
        Err(_) => Err(ApiError::new(500, "server_error", PANIC)),
    }
}

pub(super) const PANIC: &str = "the server failed on this request; its log has the reason";

fn panicked(_: Box<dyn Any + Send>) -> Response {
    ApiError::new(500, "server_error", PANIC).into_response()
}

/// Gives each answer a name.
async fn number(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Ok(id) = HeaderValue::from_str(&state.id("req_")) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Lets those through that call the server by a name of its own.
async fn check_host(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    match state.options.hosts.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Lets those through that have a key.
async fn unlock(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
    if state.options.keys.admit(header) {
        return next.run(request).await;
    }
    let message = if header.is_none() {
        "this server wants a key: Authorization: Bearer KEY"
    } else {
        "the key is not one that this server knows"
    };
    ApiError::new(401, "invalid_request_error", message).coded("invalid_api_key").into_response()
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(405, "invalid_request_error", format!("{} does not take {method}", uri.path()))
}

async fn unknown_path(method: Method, uri: Uri) -> ApiError {
    ApiError::new(404, "invalid_request_error", format!("there is nothing at {method} {}", uri.path()))
        .coded("unknown_url")
}

async fn health(Shared(state): Shared<Arc<State>>) -> Result<Response, ApiError> {
    state.health()?;
    Ok(respond(&json!({"status": "ok"})))
}

async fn metrics(Shared(state): Shared<Arc<State>>) -> Result<Response, ApiError> {
    let text = state.ready()?.metrics.render();
    Ok(([(CONTENT_TYPE, Metrics::CONTENT_TYPE)], text).into_response())
}

fn model(state: &State) -> Result<Value, ApiError> {
    let ready = state.ready()?;
    Ok(json!({
        "id": state.options.name,
        "object": "model",
        "created": ready.created,
        "owned_by": "tritone",
        "context_length": ready.context_length,
    }))
}

async fn models(Shared(state): Shared<Arc<State>>) -> Result<Response, ApiError> {
    Ok(respond(&json!({"object": "list", "data": [model(&state)?]})))
}

async fn one_model(Shared(state): Shared<Arc<State>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    state.ready_for(Some(&id))?;
    Ok(respond(&model(&state)?))
}

/// A file of the page.
async fn asset(request: Request) -> Response {
    let path = request.uri().path();
    let Some(asset) = page::asset(path) else {
        return unknown_path(request.method().clone(), request.uri().clone()).await.into_response();
    };
    let known = request.headers().get_all(IF_NONE_MATCH).iter().filter_map(|tags| tags.to_str().ok());
    let same = known.flat_map(|tags| tags.split(',')).any(|tag| {
        let tag = tag.trim();
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == asset.etag()
    });
    let mut response = if same {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(CONTENT_TYPE, asset.content_type)], Body::from(asset.body)).into_response()
    };
    let headers = response.headers_mut();
    for (name, value) in page::HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.insert(ETAG, HeaderValue::from_static(asset.etag()));
    response
}
