//! What the agent does beside its loop, on one thread with an async runtime: answering over HTTP, and testing the ways to
//! the other nodes.
//!
//! Nothing here changes the machine, and the loop goes on without it.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread;

use anyhow::Context as _;

use crate::board::Board;
use crate::config::Config;
use crate::events::Event;
use crate::http;

/// Starts the thread. What it finds out it pins to the board, and then asks the loop to look.
///
/// # Errors
/// No thread, or no runtime.
pub fn start(config: &Config, board: &Arc<Board>, events: SyncSender<Event>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let listen = config.operation.listen;
    let board = Arc::clone(board);
    let work = async move {
        // That the loop has events waiting is as good: it looks.
        let news = || drop(events.try_send(Event::Look));
        if let Some(address) = listen {
            http::serve(address, board, news).await;
        }
    };
    let thread = thread::Builder::new().name("beside".to_owned());
    thread
        .spawn(move || runtime.block_on(work))
        .map(drop)
        .context("start the thread beside the loop")
}
