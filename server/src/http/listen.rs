//! Takes connections, and ends them.
//!
//! The port is open from the beginning, so that whoever watches sees "not ready" rather than nothing. After a signal no
//! connection is taken, those that are idle are closed, and answers go on for a while; a second signal ends them too.

use super::options::{ServeError, ServeOptions};
use super::routes::router;
use super::state::State;
use crate::engine::Engine;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tritone_runtime::model::Model;

/// Threads for connections: they only copy bytes.
const CONNECTION_THREADS: usize = 2;
/// Requests that are read and made into jobs at once.
const REQUEST_THREADS: usize = 4;
/// Bytes of a request's head, and of an answer that is being written.
const BUFFER: usize = 64 << 10;
/// Answers that are complete may take as long to be written when the server is to end.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Serves the model that `load` gives until a signal comes (SIGTERM, or Ctrl-C), and then lets answers finish.
///
/// `ready` is told what happens: the address, once it is had.
///
/// # Errors
/// The address cannot be had, there is no model, or it cannot be run as it should.
pub fn serve<E: Send + 'static>(
    options: ServeOptions,
    load: impl FnOnce() -> Result<Model, E> + Send + 'static,
    ready: impl FnOnce(&str),
) -> Result<(), ServeError<E>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONNECTION_THREADS)
        .max_blocking_threads(REQUEST_THREADS)
        .thread_name("tritone-http")
        .enable_all()
        .build()
        .map_err(ServeError::System)?;
    let result = runtime.block_on(run(options, load, ready));
    // What is left had its time.
    runtime.shutdown_background();
    result
}

async fn run<E: Send + 'static>(
    options: ServeOptions,
    load: impl FnOnce() -> Result<Model, E> + Send + 'static,
    ready: impl FnOnce(&str),
) -> Result<(), ServeError<E>> {
    let mut signals = Signals::new().map_err(ServeError::System)?;
    let bind = |source| ServeError::Bind { address: format!("{}:{}", options.host, options.port), source };
    let listener = TcpListener::bind((options.host.as_str(), options.port)).await.map_err(bind)?;
    let address = listener.local_addr().map_err(ServeError::System)?;
    let engine_options = options.engine.clone();
    let grace = options.grace;
    let state = Arc::new(State::new(options));
    let (closing, closed) = watch::channel(false);
    let (alive, mut gone) = mpsc::channel::<()>(1);
    let connections = Connections { state: Arc::clone(&state), router: router(&state), closed, alive };
    tokio::spawn(connections.take(listener));
    ready(&format!("http://{address}"));

    // A thread that nobody waits for: a signal ends the server while it loads, too.
    let (loaded, model) = oneshot::channel();
    let thread = std::thread::Builder::new().name("tritone-load".to_owned());
    // Where nobody listens any more, the server has ended.
    thread.spawn(move || drop(loaded.send(load()))).map_err(ServeError::System)?;
    let model = tokio::select! {
        model = model => model.map_err(|_| ServeError::System(io::Error::other("the thread that loads failed")))?,
        () = signals.next() => return Ok(()),
    };
    let engine = Engine::start(model.map_err(ServeError::Load)?, &engine_options).map_err(ServeError::Start)?;
    state.open(engine.clone());
    signals.next().await;

    state.closing.store(true, Ordering::Relaxed);
    // Connections may have ended already.
    let _ = closing.send(true);
    tokio::select! {
        () = engine.shutdown(grace) => {}
        () = signals.next() => engine.shutdown(Duration::ZERO).await,
    }
    let _ = timeout(LAST_WRITES, gone.recv()).await;
    Ok(())
}

/// Signals that ask for the end.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn new() -> io::Result<Signals> {
        Ok(Signals {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        // Where Ctrl-C cannot be heard, the system ends the process.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
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

    /// Serves one connection to its end. Errors are the client's: it is gone, too slow, or speaks no HTTP.
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
