//! Takes connections, and ends them.
//!
//! The port is open from the beginning, so that whoever watches sees "not ready" rather than nothing. After a signal no
//! connection is taken, those that are idle are closed, and answers go on for a while; a second signal ends them too.

use super::embeddings::{Embeddings, new_embedder};
use super::options::{ServeError, ServeOptions};
use super::routes::router;
use super::state::State;
use crate::engine::{Engine, EngineOptions, StartError};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tritone_runtime::model::Model;

/// Threads for connections: they only copy bytes.
const CONNECTION_THREADS: usize = 2;
/// Requests that are read and made into jobs at once.
const REQUEST_THREADS: usize = 4;
/// Bytes of a request's head, and of an answer that is being written.
const BUFFER: usize = 64 << 10;

/// Serves the model that `load` gives until a signal comes (SIGTERM, or Ctrl-C), and then lets answers finish; a second
/// signal ends them. `ready` is told the address once it is had; the model is loaded then.
///
/// # Errors
/// The address cannot be had, there is no model, or it cannot be run as it should.
pub fn serve<E: Send + 'static>(
    options: ServeOptions,
    load: impl FnOnce() -> Result<Model, E> + Send + 'static,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError<E>> {
    let runtime = runtime().map_err(ServeError::System)?;
    let (stop, stopped) = mpsc::unbounded_channel();
    let watch = async move { tell_signals(&stop) };
    let watching = runtime.block_on(watch).map_err(ServeError::System)?;
    let result = runtime.block_on(run(options, load, stopped, ready));
    watching.abort();
    // What is left had its time.
    runtime.shutdown_background();
    result
}

/// As [`serve`], but what comes out of `stop` takes the place of signals; its end is one, too.
///
/// # Errors
/// As [`serve`].
pub fn serve_until<E: Send + 'static>(
    options: ServeOptions,
    load: impl FnOnce() -> Result<Model, E> + Send + 'static,
    stop: UnboundedReceiver<()>,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError<E>> {
    let runtime = runtime().map_err(ServeError::System)?;
    let result = runtime.block_on(run(options, load, stop, ready));
    runtime.shutdown_background();
    result
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONNECTION_THREADS)
        .max_blocking_threads(REQUEST_THREADS)
        .thread_name("tritone-http")
        .enable_all()
        .build()
}

async fn run<E: Send + 'static>(
    options: ServeOptions,
    load: impl FnOnce() -> Result<Model, E> + Send + 'static,
    mut stop: UnboundedReceiver<()>,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError<E>> {
    let bind = |source| ServeError::Bind { address: format!("{}:{}", options.host, options.port), source };
    let listener = TcpListener::bind((options.host.as_str(), options.port)).await.map_err(bind)?;
    let address = listener.local_addr().map_err(ServeError::System)?;
    let engine_options = options.engine.clone();
    let (grace, last_writes) = (options.grace, options.limits.last_writes);
    let state = Arc::new(State::new(options));
    let (closing, closed) = watch::channel(false);
    let (alive, mut gone) = mpsc::channel::<()>(1);
    let connections = Connections { state: Arc::clone(&state), router: router(&state), closed, alive };
    tokio::spawn(connections.take(listener));
    ready(address);

    // A thread that nobody waits for: a signal ends the server while it loads, too.
    let (loaded, model) = oneshot::channel();
    let thread = std::thread::Builder::new().name("tritone-load".to_owned());
    // Where nobody listens any more, the server has ended.
    thread.spawn(move || drop(loaded.send(load()))).map_err(ServeError::System)?;
    let model = tokio::select! {
        model = model => model.map_err(|_| ServeError::System(io::Error::other("the thread that loads failed")))?,
        _ = stop.recv() => return Ok(()),
    };
    let model = model.map_err(ServeError::Load)?;
    let engine = start(&model, &engine_options).map_err(ServeError::Start)?;
    state.open(model, engine.clone());
    stop.recv().await;

    state.closing.store(true, Ordering::Relaxed);
    // Connections may have ended already.
    let _ = closing.send(true);
    let vectors = || state.ready().ok().map(|ready| &ready.embeddings);
    let under_way = || vectors().is_some_and(Embeddings::are_under_way);
    let finish = async {
        if let Some(engine) = &engine {
            engine.shutdown(grace).await;
        }
        // Vectors have the same grace, and what is complete has the time to be written.
        loop {
            let before = under_way();
            if timeout(last_writes, gone.recv()).await.is_ok() || !(before || under_way()) {
                break;
            }
        }
    };
    let finished = tokio::select! {
        () = finish => true,
        () = sleep(grace) => false,
        _ = stop.recv() => false,
    };
    if !finished {
        if let Some(vectors) = vectors() {
            vectors.close();
        }
        if let Some(engine) = engine {
            engine.shutdown(Duration::ZERO).await;
        }
        // For what the failures say.
        let _ = timeout(last_writes, gone.recv()).await;
    }
    Ok(())
}

/// Starts what answers with words, unless the model only turns texts into vectors.
pub(super) fn start(model: &Model, options: &EngineOptions) -> Result<Option<Engine>, StartError> {
    if model.config().pooling.is_none() {
        return Engine::start(model.clone(), options).map(Some);
    }
    // The first request will start one of its own; what cannot be is said now.
    new_embedder(model, options.context)?;
    Ok(None)
}

/// Tells of each signal that asks for the end.
#[cfg(unix)]
fn tell_signals(stop: &UnboundedSender<()>) -> io::Result<JoinHandle<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = stop.clone();
    Ok(tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.send(()).is_err() {
                return;
            }
        }
    }))
}

/// Tells of each Ctrl-C.
#[cfg(not(unix))]
fn tell_signals(stop: &UnboundedSender<()>) -> io::Result<JoinHandle<()>> {
    let stop = stop.clone();
    Ok(tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() && stop.send(()).is_ok() {}
        // Where Ctrl-C cannot be heard the system ends the process, and not we.
        stop.closed().await;
    }))
}

/// What connections share. The last one that is dropped tells that all have ended.
#[derive(Clone)]
struct Connections {
    state: Arc<State>,
    router: Router,
    closed: watch::Receiver<bool>,
    alive: mpsc::Sender<()>,
}

impl Connections {
    /// Takes connections until it is told to stop; then the port is free.
    async fn take(mut self, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(self.state.options.limits.connections));
        loop {
            let next = async {
                // It is never closed.
                let place = Arc::clone(&places).acquire_owned().await.ok()?;
                Some((listener.accept().await, place))
            };
            let next = tokio::select! {
                next = next => next,
                _ = self.closed.changed() => return,
            };
            match next {
                Some((Ok((stream, _)), place)) => drop(tokio::spawn(self.clone().serve(stream, place))),
                // Mostly too many open files; some will be closed.
                Some((Err(_), _)) => sleep(Duration::from_millis(50)).await,
                None => return,
            }
        }
    }

    /// Serves one connection to its end. Errors are the client's: it is gone, too slow, or speaks no HTTP. One that closes
    /// its half is gone, too: nothing else tells of a client that does not wait for its answer any more.
    async fn serve(self, stream: TcpStream, place: OwnedSemaphorePermit) {
        let Connections { state, router, mut closed, alive } = self;
        let limits = &state.options.limits;
        // Parts of streams go out at once. It only costs time where it cannot be had.
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(limits.write_time));
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(limits.head_time).max_buf_size(BUFFER);
        let service = TowerToHyperService::new(router);
        let mut connection = pin!(server.serve_connection(TokioIo::new(Box::pin(stream)), service));
        tokio::select! {
            _ = connection.as_mut() => {}
            _ = closed.changed() => {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
        drop((place, alive));
    }
}
