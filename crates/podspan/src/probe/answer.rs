//! The other end of a test: takes a packet on a gateway of this node, says that it arrived, and sends it back.
//!
//! Pods can connect too; so all is bounded: connections, those of one address, bytes, time. Nothing but what came goes back. Who finds
//! no place is let go at once, and never left to wait: to the other node that is an agent that has no time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use podspan_kernel::socket;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{PORT, words};
use crate::board::Board;

/// How many are answered at a time.
const COMPANY: usize = 32;
/// How many of one address: its agent's, and those of commands there.
const SHARE: usize = 4;
/// How many more may wait, which none does for long.
const WAITING: u32 = 128;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// How many bytes one may send: TCP takes no larger segment.
pub const BYTES: usize = 32767;
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// For so many failures in a row the gateway may be not there yet.
const GRACE: u32 = 3;

/// Answers on that gateway until it is dropped; `news` is called when a problem came or went.
pub async fn answer(gateway: IpAddr, mtu: Option<u32>, board: Arc<Board>, news: impl Fn()) {
    let mut problem = Problem { told: None, board };
    let mut failures = 0;
    loop {
        match listen(gateway, mtu) {
            Ok(listener) => {
                failures = 0;
                if problem.take_back() {
                    news();
                }
                serve(listener).await;
            }
            Err(error) => {
                failures += 1;
                if failures > GRACE && problem.tell(gateway, &error) {
                    news();
                }
            }
        }
        sleep(RETRY).await;
    }
}

/// What is told as long as nobody can be answered.
struct Problem {
    told: Option<String>,
    board: Arc<Board>,
}

impl Problem {
    fn tell(&mut self, gateway: IpAddr, error: &io::Error) -> bool {
        let place = SocketAddr::new(gateway, PORT);
        let text = format!(
            "the tests of other nodes are not answered: listen on {place}: {}; see who has it: ss -ltnp sport = :{PORT}",
            words(error)
        );
        if self.told.as_ref() == Some(&text) {
            return false;
        }
        self.take_back();
        self.board.set_problem(&text, true);
        self.told = Some(text);
        true
    }

    fn take_back(&mut self) -> bool {
        let told = self.told.take();
        told.is_some_and(|told| self.board.set_problem(&told, false))
    }
}

impl Drop for Problem {
    fn drop(&mut self) {
        self.take_back();
    }
}

fn listen(gateway: IpAddr, mtu: Option<u32>) -> io::Result<TcpListener> {
    let socket = match gateway {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    if let Some(mtu) = mtu {
        let set = socket::send_full_size(&socket, gateway, mtu);
        set.map_err(|error| io::Error::from(error.errno()))?;
    }
    socket.bind(SocketAddr::new(gateway, PORT))?;
    socket.listen(WAITING)
}

/// Until the listener fails, as it does for want of descriptors.
async fn serve(listener: TcpListener) {
    let mut guests: Vec<(IpAddr, JoinHandle<()>)> = Vec::with_capacity(COMPANY);
    while let Ok((stream, from)) = listener.accept().await {
        guests.retain(|(_, task)| !task.is_finished());
        let ip = from.ip();
        let own = guests.iter().filter(|(guest, _)| *guest == ip).count();
        if guests.len() < COMPANY && own < SHARE {
            let task = tokio::spawn(async move {
                // What a connection meets is the other one's to tell.
                let _ = timeout(PATIENCE, echo(stream)).await;
            });
            guests.push((ip, task));
        }
    }
}

/// One message: its first two bytes say how long it is. They go back by themselves, then all of it.
async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut number = [0; 2];
    stream.read_exact(&mut number).await?;
    let length = usize::from(u16::from_be_bytes(number)).min(BYTES);
    let mut packet = vec![0; length];
    let (head, rest) = packet.split_at_mut(length.min(number.len()));
    head.copy_from_slice(number.get(..head.len()).unwrap_or_default());
    stream.read_exact(rest).await?;
    stream.write_all(&number).await?;
    stream.write_all(&packet).await?;
    // Until the other one has closed: a close of ours would take the packet with it if it is still to be repeated.
    stream.read_exact(&mut number).await?;
    Ok(())
}
