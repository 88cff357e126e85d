//! What others do to nf_tables, as a stream.
//!
//! The kernel announces each object of a transaction, then its generation; all carry the number of the socket that asked.
//! What our own socket did is dropped before it is queued.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use futures::stream::BoxStream;
use kernel::nft::{Generation, NftEvent, TableName};

use super::encode::{INET, NEW_GENERATION};
use crate::decode::Attributes;
use crate::nfnetlink::{GENERIC, NFTABLES, be32, text};
use crate::notify::Notifications;
use crate::request::Message;
use crate::sockopt::{Filter, JUMP_EQ, LOAD_WORD, RETURN};
use crate::stream::{self, Source};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// Room for the announcements of some thousand objects.
const RECEIVE_BUFFER: i32 = 8 << 20;
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
    stream::events(Listener {
        socket,
        table,
        touched: false,
    })
}

struct Listener {
    socket: Notifications,
    table: TableName,
    /// The transaction that is being announced is about our table.
    touched: bool,
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Source for Listener {
    type Event = NftEvent;
    const LOST: NftEvent = NftEvent::Resync;
    const AT_ONCE: usize = 64;

    fn receive(&mut self, events: &mut VecDeque<NftEvent>) -> io::Result<()> {
        for message in self.socket.receive()? {
            events.extend(take(&message, &self.table, &mut self.touched));
        }
        Ok(())
    }

    fn recover(&mut self) -> bool {
        self.touched = false;
        true
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
