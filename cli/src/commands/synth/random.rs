//! Random numbers that are the same everywhere: xoshiro256++ (Blackman and Vigna 2019), seeded through
//! splitmix64.

/// A stream of random numbers.
pub struct Random([u64; 4]);

impl Random {
    /// The stream of one row of one tensor; streams of different numbers are independent.
    pub fn new(seed: u64, tensor: u64, row: u64) -> Random {
        let mut state = seed;
        for part in [tensor, row] {
            state = splitmix(&mut state) ^ part;
        }
        Random(std::array::from_fn(|_| splitmix(&mut state)))
    }

    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// A number below `n`, which is small: the bias is less than `n / 2^64`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// From 0 to 1.
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Nearly normal with mean 0 and variance 1: the sum of four uniform numbers of 16 bits.
    pub fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: i32 = (0..4).map(|i| (bits >> (16 * i)) as u16 as i32).sum();
        // Each has the variance 2^32 / 12, so the sum has 2^32 / 3.
        (sum - 2 * 65_535) as f32 * (1.732_050_8 / 65_536.0)
    }

    /// Trits, of which the share `zeros` is 0 and the others are -1 and +1 alike. The share is
    /// taken in steps of 2^-15.
    pub fn trits(&mut self, zeros: f64, out: &mut [i8]) {
        // Even, so that as many odd as even numbers are left for the signs.
        let zeros = (zeros * 32_768.0).round() as u32 * 2;
        for four in out.chunks_mut(4) {
            let bits = self.next();
            for (i, trit) in four.iter_mut().enumerate() {
                let number = (bits >> (16 * i)) as u16;
                *trit = i8::from(u32::from(number) >= zeros) * ((number & 1) as i8 * 2 - 1);
            }
        }
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_of_the_splitmix_papers_seed() {
        // The reference implementation gives this for the state 0.
        assert_eq!(splitmix(&mut 0), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn distributions_have_their_moments() {
        let mut random = Random::new(1, 2, 3);
        let n = 1 << 18;
        let (mut sum, mut square) = (0.0, 0.0);
        for _ in 0..n {
            let x = f64::from(random.normal());
            sum += x;
            square += x * x;
        }
        assert!((sum / f64::from(n)).abs() < 0.01);
        assert!((square / f64::from(n) - 1.0).abs() < 0.01);

        let mut trits = vec![9; n as usize];
        random.trits(0.42, &mut trits);
        let share = |t| trits.iter().filter(|&&trit| trit == t).count() as f64 / f64::from(n);
        assert!((share(0) - 0.42).abs() < 0.005);
        assert!((share(1) - 0.29).abs() < 0.005);
        assert!((share(-1) - 0.29).abs() < 0.005);
        random.trits(0.0, &mut trits);
        assert!(!trits.contains(&0));
    }
}
