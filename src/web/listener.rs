//! The listeners that the service accepts connections from, with the limits of each.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::peer::Peer;

pub(crate) trait Listener: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    const LIMITS: Limits;

    fn accept_peer(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

/// How many connections there are, and how long each may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(super) connections: usize,
    pub(super) when_full: WhenFull,
    /// To send the headers of a request; also how long a connection may be idle.
    pub(super) header_timeout: Duration,
    /// Without any progress in reading a response.
    pub(super) stall_timeout: Duration,
    /// For a connection as a whole.
    pub(super) connection_timeout: Option<Duration>,
}

/// What happens to a connection beyond the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// Clients that read slowly, or not at all, must not block the response to a probe.
    CloseOldest,
    /// Clients that follow a run must stay connected.
    Refuse,
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    const LIMITS: Limits = Limits {
        connections: 256,
        when_full: WhenFull::CloseOldest,
        header_timeout: Duration::from_secs(5),
        stall_timeout: Duration::from_secs(10),
        connection_timeout: Some(Duration::from_mins(2)),
    };

    async fn accept_peer(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = self.accept().await?;
        Ok((stream, Peer::Tcp(address)))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    /// Only this user and root can connect: the limits are for accidents. A run is followed as long as it takes.
    const LIMITS: Limits = Limits {
        connections: 128,
        when_full: WhenFull::Refuse,
        header_timeout: Duration::from_secs(10),
        stall_timeout: Duration::from_secs(30),
        connection_timeout: None,
    };

    async fn accept_peer(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = self.accept().await?;
        let uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
        Ok((stream, Peer::Local { uid }))
    }
}
