//! What others do to nf_tables, as a stream.
//!
//! The kernel announces each object of a transaction, then its generation; all carry the number of the socket that asked.
//! What our own socket did is dropped before it is queued.

use std::collections::VecDeque;
use std::io;

use futures::stream::{self, BoxStream};
use kernel::nft::{Generation, NftEvent, TableName};
use tokio::io::unix::AsyncFd;

use super::encode::{INET, NEW_GENERATION};
use crate::decode::Attributes;
use crate::nfnetlink::{GENERIC, NFTABLES, be32, text};
use crate::notify::Notifications;
use crate::request::{Message, Messages};
use crate::sockopt::{Filter, JUMP_EQ, LOAD_WORD, RETURN};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// Room for the announcements of some thousand objects.
const RECEIVE_BUFFER: i32 = 8 << 20;
/// Datagrams read before the events so far are handed out.
const AT_ONCE: usize = 64;
/// Where the number of the asking socket is in a message.
const PORT_AT: u32 = 12;
const KEEP_ALL: u32 = 0x4_0000;

/// Listens in the calling thread's namespace, to all but the socket of this number.
pub(super) fn open(own: u32) -> io::Result<Notifications> {
    let instruction = |code, jt, jf, k| Filter { code, jt, jf, k };
    // The filter reads numbers in network order.
    let own = u32::from_be_bytes(own.to_ne_bytes());
    let filter = [
        instruction(LOAD_WORD, 0, 0, PORT_AT),
        instruction(JUMP_EQ, 0, 1, own),
        instruction(RETURN, 0, 0, 0),
        instruction(RETURN, 0, 0, KEEP_ALL),
    ];
    Notifications::of_netfilter(&[GROUP], RECEIVE_BUFFER, &filter)
}

/// The generation that a message announces.
fn generation(message: &Message<'_>) -> Option<Generation> {
    (message.kind == NFTABLES << 8 | NEW_GENERATION).then_some(())?;
    let (_, value) = Attributes(message.payload.get(GENERIC..)?).find(|(kind, _)| *kind == 1)?;
    be32(value).map(Generation)
}

/// As a stream; must be called inside a tokio runtime.
pub(super) fn stream(socket: Notifications, table: TableName) -> io::Result<BoxStream<'static, NftEvent>> {
    // SAFETY: the descriptor is owned by the value that is moved in, and stays the same until that is dropped.
    let socket = unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)?;
    let pump = Pump {
        socket,
        table,
        touched: false,
        queue: VecDeque::new(),
        buffer: vec![0; 64 * 1024],
        ended: false,
    };
    Ok(Box::pin(stream::unfold(pump, Pump::next)))
}

struct Pump {
    socket: AsyncFd<Notifications>,
    table: TableName,
    /// The transaction that is being announced is about our table.
    touched: bool,
    queue: VecDeque<NftEvent>,
    buffer: Vec<u8>,
    ended: bool,
}

impl Pump {
    async fn next(mut self) -> Option<(NftEvent, Self)> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some((event, self));
            }
            if self.ended {
                return None;
            }
            self.read().await;
        }
    }

    /// Waits for notifications and reads a handful.
    async fn read(&mut self) {
        let Ok(mut ready) = self.socket.readable_mut().await else {
            self.ended = true;
            return;
        };
        for _ in 0..AT_ONCE {
            match ready.try_io(|socket| socket.get_ref().receive(&mut self.buffer)) {
                Ok(Ok(length)) => {
                    for message in Messages(&self.buffer[..length]) {
                        let event = take(&message, &self.table, &mut self.touched);
                        self.queue.extend(event);
                    }
                }
                Ok(Err(error)) => {
                    // ENOBUFS: the buffer was full and notifications are lost. Anything else is the end.
                    self.ended = error.raw_os_error() != Some(libc::ENOBUFS);
                    self.touched = false;
                    self.queue.push_back(NftEvent::Resync);
                    if self.ended {
                        return;
                    }
                }
                Err(_would_block) => return,
            }
        }
    }
}

fn take(message: &Message<'_>, table: &TableName, touched: &mut bool) -> Option<NftEvent> {
    const TRACE: u16 = 17;
    if message.kind >> 8 != NFTABLES {
        return None;
    }
    let attributes = message.payload.get(GENERIC..)?;
    match message.kind & 0xff {
        TRACE => None,
        NEW_GENERATION => {
            let generation = generation(message)?;
            let program = Attributes(attributes).find(|(kind, _)| *kind == 3);
            Some(match std::mem::take(touched) {
                true => NftEvent::Touched {
                    generation,
                    program: program.map(|(_, name)| text(name).to_owned()),
                },
                false => NftEvent::Elsewhere { generation },
            })
        }
        _ => {
            // The table's name is the first attribute of every object.
            let mut names = Attributes(attributes).filter(|(kind, _)| *kind == 1);
            let ours = names.next().is_some_and(|(_, name)| text(name) == table.0);
            *touched |= ours && message.payload.first() == Some(&INET);
            None
        }
    }
}
