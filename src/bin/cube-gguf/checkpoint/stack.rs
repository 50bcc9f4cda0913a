//! [`Stack`]: matrices of a checkpoint's files, one after the other, with their rows in the order of a GGUF file.

use super::shards::{Shards, Stored};
use crate::Outcome;

/// Which rows of a stored matrix are those of the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The same.
    Same,
    /// Of each head of so many rows the first half and the second in turn: rotary embeddings turn neighbours in llama.cpp,
    /// halves in Transformers.
    Halves(usize),
    /// Every second, from this one on.
    EverySecond(usize),
    /// Columns of the stored matrix: every so-manieth, from the first on.
    Columns { first: usize, step: usize },
}

/// Matrices of equal shape.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The file and the first byte of each.
    matrices: Vec<(usize, u64)>,
    /// Rows of the new matrices.
    rows: usize,
    /// Columns of them.
    columns: usize,
    /// Bytes of a value.
    size: usize,
    /// Bytes of a row of the stored matrices.
    pitch: usize,
    order: Order,
}

impl Stack {
    /// The matrices of tensors with `size` bytes a value, whose outer dimensions are stacks of their own. `None` where a tensor
    /// has less than two dimensions, or its rows cannot have the order.
    pub fn new<'a>(tensors: impl IntoIterator<Item = &'a Stored>, size: usize, order: Order) -> Option<Self> {
        let mut stack: Option<Self> = None;
        for tensor in tensors {
            let &[ref outer @ .., rows, columns] = tensor.shape.as_slice() else { return None };
            let count = outer.iter().product::<usize>();
            let bytes = (rows * columns * size) as u64;
            let pitch = columns * size;
            let (rows, columns) = match order {
                Order::Same => (rows, columns),
                Order::Halves(head) if head > 0 && head.is_multiple_of(2) && rows.is_multiple_of(head) => {
                    (rows, columns)
                }
                Order::EverySecond(first) if first < 2 && rows.is_multiple_of(2) => (rows / 2, columns),
                Order::Columns { step, first } if first < step && columns.is_multiple_of(step) => {
                    (columns / step, rows)
                }
                _ => return None,
            };
            let all = stack.get_or_insert(Self { matrices: Vec::new(), rows, columns, size, pitch, order });
            if (all.rows, all.columns) != (rows, columns) {
                return None;
            }
            all.matrices.extend((0..count as u64).map(|i| (tensor.file, tensor.offset + i * bytes)));
        }
        stack
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.columns * self.size
    }

    /// Reads rows of all matrices.
    pub fn read(&self, shards: &Shards, first: usize, count: usize) -> Outcome<Vec<u8>> {
        let row_bytes = self.row_bytes();
        let mut out = vec![0; count * row_bytes];
        let mut read = 0;
        while read < count {
            let (matrix, row) = ((first + read) / self.rows, (first + read) % self.rows);
            let rows = (self.rows - row).min(count - read);
            self.read_of(shards, self.matrices[matrix], row, &mut out[read * row_bytes..][..rows * row_bytes])?;
            read += rows;
        }
        Ok(out)
    }

    /// Reads as many rows of a matrix as `out` has room for.
    fn read_of(&self, shards: &Shards, (file, start): (usize, u64), first: usize, out: &mut [u8]) -> Outcome {
        let (row_bytes, size) = (self.row_bytes(), self.size);
        let at = |row: usize| start + (row * self.pitch) as u64;
        match self.order {
            Order::Same => shards.read(file, at(first), out),
            Order::EverySecond(parity) => {
                let count = out.len() / row_bytes;
                // Without the last row's neighbour, which may be another tensor's.
                let mut both = vec![0; (2 * count - 1) * row_bytes];
                shards.read(file, at(2 * first + parity), &mut both)?;
                out.chunks_exact_mut(row_bytes).zip(both.chunks(2 * row_bytes)).for_each(|(out, both)| {
                    out.copy_from_slice(&both[..row_bytes]);
                });
                Ok(())
            }
            Order::Halves(head) => {
                for (row, out) in (first..).zip(out.chunks_exact_mut(row_bytes)) {
                    let within = row % head;
                    let stored = row - within + within % 2 * (head / 2) + within / 2;
                    shards.read(file, at(stored), out)?;
                }
                Ok(())
            }
            Order::Columns { first: parity, step } => {
                let count = out.len() / row_bytes;
                let mut cells = vec![0; ((count - 1) * step + 1) * size];
                for column in 0..self.columns {
                    shards.read(file, at(column) + ((first * step + parity) * size) as u64, &mut cells)?;
                    for (row, cell) in cells.chunks(step * size).enumerate() {
                        out[row * row_bytes + column * size..][..size].copy_from_slice(&cell[..size]);
                    }
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, process};

    use super::super::shards::Dtype;
    use super::*;

    /// Two matrices of 8 rows of 4 bytes that are their own numbers, in a file of their own.
    fn shards(test: &str) -> Shards {
        let header = r#"{"m":{"dtype":"U8","shape":[2,8,4],"data_offsets":[0,64]}}"#;
        let bytes: Vec<u8> = (0..64).collect();
        let path = env::temp_dir().join(format!("cube-gguf-stack-{test}-{}.safetensors", process::id()));
        fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes].concat()).unwrap();
        let shards = Shards::open(&path).unwrap();
        fs::remove_file(path).unwrap();
        shards
    }

    /// Rows are read in pieces of every length, across matrices, and are those that the order says.
    #[test]
    fn rows_come_in_the_order_asked_for_however_many_at_a_time() {
        let shards = shards("order");
        let tensor = shards.get("m").unwrap();
        assert_eq!(tensor.dtype, Dtype::Byte);
        let row = |matrix: u8, row: u8| (0..4).map(|column| matrix * 32 + row * 4 + column).collect::<Vec<_>>();
        let column = |matrix: u8, column: u8| (0..8).map(|row| matrix * 32 + row * 4 + column).collect::<Vec<_>>();
        let rows = |order: &[u8]| (0..2).flat_map(|m| order.iter().map(move |&r| row(m, r))).collect::<Vec<_>>();
        let cases = [
            (Order::Same, rows(&[0, 1, 2, 3, 4, 5, 6, 7])),
            (Order::Halves(4), rows(&[0, 2, 1, 3, 4, 6, 5, 7])),
            (Order::Halves(8), rows(&[0, 4, 1, 5, 2, 6, 3, 7])),
            (Order::EverySecond(0), rows(&[0, 2, 4, 6])),
            (Order::EverySecond(1), rows(&[1, 3, 5, 7])),
            (
                Order::Columns { first: 0, step: 1 },
                (0..2).flat_map(|m| (0..4).map(move |c| column(m, c))).collect::<Vec<_>>(),
            ),
            (
                Order::Columns { first: 1, step: 2 },
                [(0, 1), (0, 3), (1, 1), (1, 3)].map(|(m, c)| column(m, c)).to_vec(),
            ),
        ];
        for (order, expected) in cases {
            let stack = Stack::new([tensor], 1, order).unwrap();
            assert_eq!(stack.row_bytes(), expected[0].len());
            for count in 1..=expected.len() {
                for first in 0..=expected.len() - count {
                    let found = stack.read(&shards, first, count).unwrap();
                    assert_eq!(found, expected[first..first + count].concat(), "{order:?}: {count} from {first}");
                }
            }
        }
    }

    #[test]
    fn shapes_without_such_rows_make_no_stack() {
        let shards = shards("shapes");
        let tensor = shards.get("m").unwrap();
        let of = |shape: &[usize], order| Stack::new([&Stored { shape: shape.to_vec(), ..tensor.clone() }], 1, order);
        assert!(of(&[64], Order::Same).is_none());
        assert!(of(&[6, 4], Order::Halves(4)).is_none());
        assert!(of(&[6, 4], Order::Halves(3)).is_none());
        assert!(of(&[7, 4], Order::EverySecond(0)).is_none());
        assert!(of(&[4, 7], Order::Columns { first: 0, step: 2 }).is_none());
        let other = Stored { shape: vec![4, 4], ..tensor.clone() };
        assert!(Stack::new([tensor, &other], 1, Order::Same).is_none());
    }

    /// Files are read, not mapped.
    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let shards = shards("shorter");
        let tensor = Stored { offset: 1 << 20, ..shards.get("m").unwrap().clone() };
        let error = Stack::new([&tensor], 1, Order::Same).unwrap().read(&shards, 0, 1).unwrap_err().to_string();
        assert!(error.contains("4 bytes at 1048576: "), "{error}");
    }
}
