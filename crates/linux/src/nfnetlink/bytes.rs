//! Messages and attributes into bytes.

/// Messages, one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bytes(pub Vec<u8>);

/// What a message is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// Subsystem.
    pub subsystem: u16,
    /// Operation of the subsystem.
    pub operation: u16,
    /// `AF_*` or `NFPROTO_*`.
    pub family: u8,
    /// Group or the like, else 0.
    pub resource: u16,
}

const NESTED: u16 = 0x8000;

impl Bytes {
    /// A message with the attributes that `body` writes.
    pub fn message(&mut self, target: Target, flags: u16, sequence: u32, body: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        self.0
            .extend_from_slice(&(target.subsystem << 8 | target.operation).to_ne_bytes());
        self.0.extend_from_slice(&flags.to_ne_bytes());
        self.0.extend_from_slice(&sequence.to_ne_bytes());
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(&[target.family, 0]);
        self.0.extend_from_slice(&target.resource.to_be_bytes());
        body(self);
        let length = (self.0.len() - start) as u32;
        self.0[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// An attribute.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let length = (4 + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
    }

    /// An attribute of text, which ends with a zero byte.
    pub fn text(&mut self, kind: u16, value: &str) {
        let length = (5 + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self.pad();
    }

    /// An attribute of four bytes in network order.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// An attribute of two bytes in network order.
    pub fn be16(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_be_bytes());
    }

    /// An attribute with the attributes that `body` writes: at most 64 KiB.
    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(self);
        let length = self.0.len() - start;
        debug_assert!(length <= usize::from(u16::MAX), "an attribute of {length} bytes");
        self.0[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
