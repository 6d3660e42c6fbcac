//! A homeserver in memory, for what a real Synapse cannot be made to do.
//!
//! It responds with the texts and types of Synapse 1.163, on a thread of its own, so that a test may block.
//! What a client must never do is a complaint: one that no test reads fails the test when the `Fake` is dropped.

#[path = "fake/devices.rs"]
mod devices;
#[path = "fake/endpoints.rs"]
mod endpoints;
#[path = "fake/mas.rs"]
mod mas;
#[path = "fake/mas_admin.rs"]
mod mas_admin;
#[path = "fake/messages.rs"]
mod messages;
#[path = "fake/openapi.rs"]
mod openapi;
#[path = "fake/registration_tokens.rs"]
mod registration_tokens;
#[path = "fake/reports.rs"]
mod reports;
#[path = "fake/world.rs"]
mod world;

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    future::{pending, poll_fn},
    io, mem,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    thread,
    time::{Duration, Instant},
};

use hyper::{
    Request, Response,
    body::{Body, Bytes, Frame, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Semaphore, oneshot},
    task::JoinHandle,
    time::{Sleep, sleep},
};

use self::endpoints::{Answer, percent_decoded};
pub use self::mas::{
    CLIENT_ID, CLIENT_SECRET, Provider, RegistrationToken as MasToken, SessionKind,
};
pub use self::messages::Message;
pub use self::openapi::Operation;
pub use self::registration_tokens::RegistrationToken;
pub use self::reports::Report;
use self::world::Doomed;
pub use self::world::{Device, Member, SERVER_NAME, TOKEN, User, World, room_event};

/// A running homeserver on 127.0.0.1, stopped when dropped.
pub struct Fake {
    shared: Arc<Shared>,
    process: Process,
    address: SocketAddr,
    server: Mutex<Option<Server>>,
    /// Keeps the port while the server is down: another fake must not get it.
    reserved: Mutex<Option<TcpSocket>>,
}

impl Fake {
    pub fn start() -> Self {
        Self::of(World::new())
    }

    pub fn of(world: World) -> Self {
        Self::serving(Arc::new(Shared::of(world)), Process::Main)
    }

    /// Moves the media endpoints to a worker at another URL, of the same world and with the same records.
    pub fn media_worker(&self) -> Self {
        self.world(|world| world.media_repo = false);
        Self::serving(Arc::clone(&self.shared), Process::MediaWorker)
    }

    /// The listeners of a MAS that manages the accounts of the same world: the public one, and the internal one with the
    /// Admin API.
    pub fn mas(&self) -> (Self, Self) {
        self.world(|world| world.mas = true);
        let listener = |process| Self::serving(Arc::clone(&self.shared), process);
        (listener(Process::MasPublic), listener(Process::MasInternal))
    }

    fn serving(shared: Arc<Shared>, process: Process) -> Self {
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let (server, address) = Server::launch(&shared, process, anywhere);
        Self {
            shared,
            process,
            address,
            server: Mutex::new(Some(server)),
            reserved: Mutex::default(),
        }
    }

    /// Without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Reads or changes the state between two requests.
    pub fn world<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        let mut state = self.shared.state();
        state.world.touched();
        let seen = look(&mut state.world);
        state.world.touched();
        seen
    }

    /// Faults are tried in the order in which they were added.
    pub fn fault(&self, fault: Fault) {
        self.shared.state().faults.push(fault);
    }

    pub fn no_more_faults(&self) {
        self.shared.state().faults.clear();
    }

    pub fn requests(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }

    /// How often somebody looked whether Synapse is busy on its own account; these are not among the requests.
    pub fn looks(&self) -> usize {
        self.shared.state().looks
    }

    /// `method` may be `"*"`; the prefix is compared with the path as sent and with the decoded one.
    pub fn count(&self, method: &str, path_prefix: &str) -> usize {
        let state = self.shared.state();
        state.seen.iter().filter(|seen| fits(method, path_prefix, &seen.method, &seen.path)).count()
    }

    /// Forgets the requests and the greatest concurrency so far, not the complaints.
    pub fn forget(&self) {
        let mut state = self.shared.state();
        state.seen.clear();
        state.max_in_flight = state.in_flight;
    }

    /// The maximum number of concurrent requests so far.
    pub fn max_concurrent(&self) -> usize {
        self.shared.state().max_in_flight
    }

    /// Takes the complaints, so that dropping the `Fake` does not panic because of them.
    pub fn complaints(&self) -> Vec<String> {
        self.shared.state().world.take_complaints()
    }

    /// Closes all connections and refuses new ones. What had not vanished by then stays.
    pub fn go_down(&self) {
        drop(self.server().take());
        *self.reserved() = Some(reserve(self.address));
    }

    /// Listens on the same port again, with the same world.
    pub fn come_up(&self) {
        let mut server = self.server();
        if server.is_none() {
            drop(self.reserved().take());
            *server = Some(Server::launch(&self.shared, self.process, self.address).0);
        }
    }

    fn reserved(&self) -> MutexGuard<'_, Option<TcpSocket>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn server(&self) -> MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket that has an address and refuses connections.
fn reserve(address: SocketAddr) -> TcpSocket {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match try_reserve(address) {
            Ok(socket) => return socket,
            // A process that is being started has the server's socket until it is the other program.
            Err(error) => {
                assert!(Instant::now() < end, "the port of a server that is down: {error}");
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn try_reserve(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    // The connections of the server may not be forgotten yet.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.set_reuseaddr(false)?;
    Ok(socket)
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.server().take());
        let complaints = self.complaints();
        assert!(
            complaints.is_empty() || thread::panicking(),
            "the homeserver complains: {complaints:#?}"
        );
    }
}

/// A request as it arrived; the body is empty where a fault left it unread.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// Still encoded.
    pub path: String,
    pub query: String,
    pub body: String,
    pub at: Instant,
    pub process: Process,
    pub connection: u64,
    pub user_agent: String,
    pub content_type: String,
    pub authorization_present: bool,
}

impl Seen {
    /// Whether the request asks only what Synapse does on its own account: every run that changes something does.
    fn is_look(&self) -> bool {
        self.path.ends_with("/background_updates/status")
            || (self.path.ends_with("/scheduled_tasks") && self.query.contains("status=active"))
    }
}

/// The Synapse process, or the listener of MAS, that responds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Process {
    Main,
    MediaWorker,
    MasPublic,
    MasInternal,
}

/// What goes wrong, where and how often: once, unless `times` or `always` says otherwise.
#[derive(Clone, Debug)]
pub struct Fault {
    method: String,
    path_prefix: String,
    trouble: Trouble,
    after: usize,
    times: usize,
}

impl Fault {
    /// `method` may be `"*"`; the prefix is compared with the path as sent and with the decoded one.
    pub fn new(method: &str, path_prefix: &str, trouble: Trouble) -> Self {
        Self {
            method: method.to_owned(),
            path_prefix: path_prefix.to_owned(),
            trouble,
            after: 0,
            times: 1,
        }
    }

    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    pub fn always(self) -> Self {
        self.times(usize::MAX)
    }

    /// Lets this many matching requests pass first.
    pub fn after(mut self, passes: usize) -> Self {
        self.after = passes;
        self
    }

    fn strikes(&mut self, method: &str, path: &str) -> bool {
        if self.times == 0 || !fits(&self.method, &self.path_prefix, method, path) {
            return false;
        }
        if self.after > 0 {
            self.after -= 1;
            return false;
        }
        self.times = if self.times == usize::MAX { usize::MAX } else { self.times - 1 };
        true
    }
}

#[derive(Clone, Debug)]
pub enum Trouble {
    /// 429; the header is in seconds. Not carried out.
    Limited { retry_after_ms: Option<u64>, retry_after_header: Option<u64> },
    /// An HTML page of a reverse proxy that did not forward the request. Not carried out.
    Proxy(u16),
    /// The same page after the proxy timed out. Carried out.
    ProxyAfter(u16),
    /// An error of Synapse: status, errcode, error. Not carried out.
    Synapse(u16, &'static str, &'static str),
    /// The connection ends before the body is read. Not carried out.
    CutBefore,
    /// The connection ends instead of a response. Carried out.
    CutAfter,
    /// The connection ends in the middle of the response body. Carried out.
    CutBody,
    /// The response is delayed. Carried out at once.
    Delay(Duration),
    /// The connection ends at once, and the files of a media call are deleted one by one over that time.
    WorkOn(Duration),
    /// The correct status and a body that is not JSON. Carried out.
    BrokenJson,
    /// Never responds. Not carried out.
    Hang,
    /// 302 to that URL. Not carried out.
    Redirect(String),
    /// Any response that the test sets; as JSON if it begins with `{`. Not carried out.
    Answer { status: u16, headers: Vec<(&'static str, String)>, body: String },
    /// That status and a body that never ends. Not carried out.
    Endless(u16),
    /// The header announces this many bytes, and none of them follow. Not carried out.
    Announced(u64),
    /// The correct response, at one byte per 100 ms. Carried out.
    Trickle,
    /// The correct response with one header replaced. Carried out.
    Header(&'static str, &'static str),
    /// The correct response, once there is a permit. Carried out at once.
    Held(Arc<Semaphore>),
    /// The correct response, right after which something else happens. Carried out.
    Then(fn(&mut World)),
}

impl Trouble {
    /// The response that is sent instead of carrying out the request.
    fn instead(&self) -> Option<Answer> {
        match self {
            Self::Limited { retry_after_ms, retry_after_header } => {
                Some(Answer::limited(*retry_after_ms, *retry_after_header))
            }
            Self::Proxy(status) => Some(Answer::of_proxy(*status)),
            Self::Synapse(status, errcode, error) => Some(Answer::refusal(*status, errcode, error)),
            Self::Redirect(url) => Some(Answer::of_proxy(302).with_header(header::LOCATION, url)),
            Self::Answer { status, headers, body } => {
                let mut answer = Answer::of_proxy(*status);
                if body.starts_with('{') {
                    (answer.content_type, answer.of_proxy) = ("application/json", false);
                }
                answer.body = body.clone().into_bytes();
                Some(headers.iter().fold(answer, |answer, (name, value)| {
                    answer.with_header(header::HeaderName::from_static(name), value)
                }))
            }
            Self::Endless(status) => Some(Answer::refusal(*status, "M_UNKNOWN", "")),
            Self::Announced(_) => Some(Answer::refusal(200, "M_UNKNOWN", "")),
            _ => None,
        }
    }
}

fn fits(wanted: &str, path_prefix: &str, method: &str, path: &str) -> bool {
    (wanted == "*" || wanted == method)
        && (path.starts_with(path_prefix) || percent_decoded(path).starts_with(path_prefix))
}

/// Listens; a port that was free for a moment may be a connection's of another program by now, and is waited for.
fn listen(address: SocketAddr) -> std::net::TcpListener {
    let end = Instant::now() + Duration::from_mins(1);
    loop {
        match std::net::TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                assert!(Instant::now() < end, "port {} stays in use", address.port());
                thread::sleep(Duration::from_millis(20));
            }
            listener => return listener.expect("a port to listen on"),
        }
    }
}

/// The thread that serves; dropping it closes every connection.
struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn launch(shared: &Arc<Shared>, process: Process, address: SocketAddr) -> (Self, SocketAddr) {
        let shared = Arc::clone(shared);
        let listener = listen(address);
        listener.set_nonblocking(true).expect("a listener that does not block");
        let address = listener.local_addr().expect("an address of its own");
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime for the fake");
            runtime.block_on(async {
                let listeners =
                    vec![TcpListener::from_std(listener).expect("a listener for tokio")];
                tokio::select! {
                    never = serve(shared, process, listeners) => match never {},
                    _ = stopped => {}
                }
            });
        });
        (Self { stop: Some(stop), thread: Some(thread) }, address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the fake's thread panicked");
        }
    }
}

pub struct Shared(Mutex<State>);

struct State {
    world: World,
    faults: Vec<Fault>,
    seen: Vec<Seen>,
    looks: usize,
    in_flight: usize,
    max_in_flight: usize,
    media_in_flight: usize,
    /// Synapse does not notice that a client went away.
    media_busy_until: Instant,
}

impl Shared {
    pub fn of(world: World) -> Self {
        Self(Mutex::new(State {
            world,
            faults: Vec::new(),
            seen: Vec::new(),
            looks: 0,
            in_flight: 0,
            max_in_flight: 0,
            media_in_flight: 0,
            media_busy_until: Instant::now(),
        }))
    }

    /// A test that fails inside `Fake::world` must not take the server along.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves a world at one address or several; the benches do so in a process of its own.
pub async fn serve(
    shared: Arc<Shared>,
    process: Process,
    listeners: Vec<TcpListener>,
) -> Infallible {
    for listener in listeners {
        tokio::spawn(accept(Arc::clone(&shared), process, listener));
    }
    pending().await
}

async fn accept(shared: Arc<Shared>, process: Process, listener: TcpListener) -> Infallible {
    for connection in 1.. {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        // A stream that has already ended reports it when it is read.
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service =
                service_fn(|request| reply(Arc::clone(&shared), process, connection, request));
            let serving = http1::Builder::new()
                .auto_date_header(false)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            // The error is how a fault cuts the connection, or the client went away.
            drop(serving);
        });
    }
    unreachable!("more connections than a u64 counts")
}

/// The error with which a handler makes hyper drop the connection.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is cut")
    }
}

impl Error for Cut {}

async fn reply(
    shared: Arc<Shared>,
    process: Process,
    connection: u64,
    request: Request<Incoming>,
) -> Result<Response<Pieces>, Cut> {
    let (head, incoming) = request.into_parts();
    let text = |name| {
        head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let authorization = text(header::AUTHORIZATION);
    let mut seen = Seen {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        body: String::new(),
        at: Instant::now(),
        process,
        connection,
        user_agent: text(header::USER_AGENT),
        content_type: text(header::CONTENT_TYPE),
        authorization_present: !authorization.is_empty(),
    };
    let _in_flight = InFlight::enter(&shared, &seen);
    let trouble = shared.state().trouble_for(&seen);
    if matches!(trouble, Some(Trouble::CutBefore | Trouble::Hang)) {
        shared.state().record(&seen);
    }
    match trouble {
        Some(Trouble::CutBefore) => return Err(Cut),
        Some(Trouble::Hang) => pending().await,
        _ => {}
    }
    seen.body = String::from_utf8_lossy(&whole(incoming).await?).into_owned();
    let answer = worked_on(&shared, &seen, &authorization, trouble.as_ref()).await?;
    match trouble {
        Some(Trouble::CutAfter) => Err(Cut),
        Some(Trouble::ProxyAfter(status)) => {
            Ok(response(&shared, Answer::of_proxy(status), Pieces::all))
        }
        Some(Trouble::BrokenJson) => Ok(response(&shared, answer.broken(), Pieces::all)),
        Some(Trouble::CutBody) => Ok(response(&shared, answer, Pieces::half)),
        Some(Trouble::Endless(_)) => Ok(response(&shared, answer, Pieces::endless)),
        Some(Trouble::Announced(bytes)) => {
            let answer = answer.with_header(header::CONTENT_LENGTH, &bytes.to_string());
            Ok(response(&shared, answer, Pieces::none))
        }
        Some(Trouble::Trickle) => Ok(response(&shared, answer, Pieces::trickle)),
        Some(Trouble::Header(name, value)) => {
            let answer = answer.with_header(header::HeaderName::from_static(name), value);
            Ok(response(&shared, answer, Pieces::all))
        }
        Some(Trouble::Held(release)) => {
            let _permit = release.acquire().await;
            Ok(response(&shared, answer, Pieces::all))
        }
        Some(Trouble::Then(happens)) => {
            happens(&mut shared.state().world);
            Ok(response(&shared, answer, Pieces::all))
        }
        _ => Ok(response(&shared, answer, Pieces::all)),
    }
}

/// Carries out the request, unless the fault replaces it, with the configured delays.
async fn worked_on(
    shared: &Arc<Shared>,
    seen: &Seen,
    authorization: &str,
    trouble: Option<&Trouble>,
) -> Result<Answer, Cut> {
    let (work, delay, answer) = {
        let mut state = shared.state();
        state.record(seen);
        let instead = trouble.and_then(Trouble::instead);
        let mut answer =
            instead.unwrap_or_else(|| endpoints::answer(&mut state.world, seen, authorization));
        let doomed = mem::take(&mut answer.doomed);
        let files = u32::try_from(doomed.len()).unwrap_or(u32::MAX);
        let (over, extra) = match trouble {
            Some(Trouble::WorkOn(over)) => (*over, Duration::ZERO),
            Some(Trouble::Delay(extra)) => {
                (state.world.time_per_file.saturating_mul(files), *extra)
            }
            _ => (state.world.time_per_file.saturating_mul(files), Duration::ZERO),
        };
        let delay = state.world.latency + extra;
        if is_media_call(seen) {
            state.media_busy_until = state.media_busy_until.max(Instant::now() + over.max(delay));
        }
        (vanish(shared, &mut state, doomed, over), delay, answer)
    };
    if matches!(trouble, Some(Trouble::WorkOn(_))) {
        return Err(Cut);
    }
    if let Some(work) = work {
        work.await.map_err(|_| Cut)?;
    }
    let least = if is_media_call(seen) { AT_LEAST_FOR_MEDIA } else { Duration::ZERO };
    let delay = delay.max(least);
    if !delay.is_zero() {
        sleep(delay).await;
    }
    Ok(answer)
}

/// Long enough that two calls which overlap are seen to.
const AT_LEAST_FOR_MEDIA: Duration = Duration::from_millis(3);

fn is_media_call(seen: &Seen) -> bool {
    seen.method == "POST"
        && (seen.path.starts_with("/_synapse/admin/v1/media/delete")
            || seen.path.starts_with("/_synapse/admin/v1/purge_media_cache"))
}

/// Deletes at once, or one by one by a task that a lost connection does not end.
fn vanish(
    shared: &Arc<Shared>,
    state: &mut State,
    doomed: Vec<Doomed>,
    over: Duration,
) -> Option<JoinHandle<()>> {
    if doomed.is_empty() {
        return None;
    }
    if over.is_zero() {
        for one in &doomed {
            state.world.delete(one);
        }
        return None;
    }
    let shared = Arc::clone(shared);
    Some(tokio::spawn(async move {
        let start = Instant::now();
        let all = doomed.len();
        for (done, one) in doomed.iter().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "no test has 2^52 files")]
            let due = start + over.mul_f64((done + 1) as f64 / all as f64);
            let wait = due.saturating_duration_since(Instant::now());
            // Timers are not more precise than that.
            if wait > Duration::from_millis(1) {
                sleep(wait).await;
            }
            shared.state().world.delete(one);
        }
    }))
}

impl State {
    fn trouble_for(&mut self, seen: &Seen) -> Option<Trouble> {
        self.faults.iter_mut().find_map(|fault| {
            let strikes = fault.strikes(&seen.method, &seen.path);
            strikes.then(|| fault.trouble.clone())
        })
    }

    fn record(&mut self, seen: &Seen) {
        if seen.is_look() {
            self.looks += 1;
        } else if self.world.record_requests {
            self.seen.push(seen.clone());
        }
    }
}

/// Counts a request while it exists, even if the client disconnects.
struct InFlight {
    shared: Arc<Shared>,
    media: bool,
    is_look: bool,
}

impl InFlight {
    fn enter(shared: &Arc<Shared>, seen: &Seen) -> Self {
        let media = is_media_call(seen);
        let mut state = shared.state();
        // Looks are not part of the run that they precede.
        let is_look = seen.is_look();
        state.in_flight += usize::from(!is_look);
        state.max_in_flight = state.max_in_flight.max(state.in_flight);
        if media {
            if state.media_in_flight > 0 || Instant::now() < state.media_busy_until {
                state.world.complain(format!(
                    "{} {} while a media call is at work",
                    seen.method, seen.path
                ));
            }
            state.media_in_flight += 1;
        }
        Self { shared: Arc::clone(shared), media, is_look }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.in_flight -= usize::from(!self.is_look);
        state.media_in_flight -= usize::from(self.media);
    }
}

async fn whole(mut incoming: Incoming) -> Result<Vec<u8>, Cut> {
    let mut body = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut incoming).poll_frame(context)).await {
        if let Ok(data) = frame.map_err(|_| Cut)?.into_data() {
            body.extend_from_slice(&data);
        }
    }
    Ok(body)
}

fn response(shared: &Shared, answer: Answer, pieces: fn(Vec<u8>) -> Pieces) -> Response<Pieces> {
    let (date, version) = {
        let state = shared.state();
        (state.world.http_date(), state.world.version.clone())
    };
    let server = if answer.of_proxy {
        "nginx/1.26.2".to_owned()
    } else {
        format!("Synapse/{}", version.escape_default())
    };
    let mut response = Response::builder()
        .status(answer.status)
        .header(header::DATE, date)
        .header(header::SERVER, server)
        .header(header::CONTENT_TYPE, answer.content_type);
    for (name, value) in answer.headers {
        if let Some(headers) = response.headers_mut() {
            headers.insert(name, value.parse().expect("a value that HTTP allows"));
        }
    }
    response.body(pieces(answer.body)).expect("headers that HTTP allows")
}

/// A body of unknown length, chunked as Synapse's are, that may end too early.
struct Pieces {
    bytes: Option<Bytes>,
    end: End,
}

enum End {
    Regular,
    CutAfterFlush,
    Cut,
    /// The same bytes again and again.
    Never(Bytes),
    /// What is left, byte by byte.
    Slow(Bytes, Pin<Box<Sleep>>),
    /// Nothing more, and no end.
    Silent,
}

const TRICKLE: Duration = Duration::from_millis(100);

impl Pieces {
    fn all(body: Vec<u8>) -> Self {
        Self { bytes: Some(body.into()), end: End::Regular }
    }

    fn half(mut body: Vec<u8>) -> Self {
        body.truncate(body.len() / 2);
        Self { bytes: Some(body.into()), end: End::CutAfterFlush }
    }

    fn endless(_: Vec<u8>) -> Self {
        Self { bytes: None, end: End::Never(vec![b' '; 64 * 1024].into()) }
    }

    fn none(_: Vec<u8>) -> Self {
        Self { bytes: None, end: End::Silent }
    }

    fn trickle(body: Vec<u8>) -> Self {
        Self { bytes: None, end: End::Slow(body.into(), Box::pin(sleep(TRICKLE))) }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(bytes) = self.bytes.take()
            && !bytes.is_empty()
        {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match &mut self.end {
            End::Regular => Poll::Ready(None),
            End::Never(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes.clone())))),
            End::Slow(rest, _) if rest.is_empty() => Poll::Ready(None),
            End::Slow(rest, next) => {
                ready!(next.as_mut().poll(context));
                next.set(sleep(TRICKLE));
                Poll::Ready(Some(Ok(Frame::data(rest.split_to(1)))))
            }
            End::Silent => Poll::Pending,
            // hyper throws away what it has not flushed when a body fails, and flushes when a body is not ready.
            End::CutAfterFlush => {
                self.end = End::Cut;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            End::Cut => Poll::Ready(Some(Err(Cut))),
        }
    }
}
