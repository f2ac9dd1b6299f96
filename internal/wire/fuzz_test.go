package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func FuzzDecode(f *testing.F) {
	f.Add(encode(12, 345, sample()))
	f.Add(encode(12, 345, leaseSample()))
	f.Add(encodeCommands(12, 345, sampleCommands()))
	f.Add(EncodeOpenSession(1, 0, 0))
	f.Add(EncodeOpenSession(1, 2, 3))
	f.Add(EncodeClockAdvance(ClockAdvance{Expected: 1, Next: 2}))
	f.Add([]byte{FormatVersion, flagZstd, 0x28, 0xb5, 0x2f, 0xfd})
	f.Add([]byte{FormatVersion, 0, 0x32, 4, 0x4a, 2, 0x12, 0})
	var d, again Decoder
	f.Fuzz(func(t *testing.T, cmd []byte) {
		e, err := d.Decode(cmd)
		if err != nil {
			return
		}
		// The decoded entry can be encoded and decoded again without a loss.
		var ops []*Operation
		for i := range e.Operations {
			ops = append(ops, &e.Operations[i])
		}
		if e.OpenSession || e.ClockAdvance != nil {
			return
		}
		second, err := again.Decode(encode(e.Session, e.Sequence, ops))
		if err != nil {
			t.Fatal(err)
		}
		if err := same(second, e.Session, e.Sequence, ops); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	f.Add(AppendState(nil, sampleState()))
	f.Add(AppendState(nil, leaseState()))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeState(b)
		if err != nil {
			return
		}
		first := AppendState(nil, s)
		back, err := DecodeState(first)
		if err != nil || !bytes.Equal(AppendState(nil, back), first) {
			t.Fatalf("%x became %x, %v", first, AppendState(nil, back), err)
		}
	})
}

func FuzzDecodeSession(f *testing.F) {
	f.Add(AppendSession(nil, &sampleState().Sessions[0]))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := DecodeSession(b); err == nil {
			AppendSession(nil, s)
		}
	})
}

func FuzzDecodeWaiter(f *testing.F) {
	for _, p := range leaseState().Waiters {
		f.Add(AppendWaiter(nil, &p))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodeWaiter(b)
		if err != nil {
			return
		}
		again, err := DecodeWaiter(AppendWaiter(nil, p))
		if err != nil {
			t.Fatal(err)
		}
		if err := sameState(&State{Waiters: []Waiter{*again}}, &State{Waiters: []Waiter{*p}}); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzDecodeResult(f *testing.F) {
	for i := range sampleState().Sessions[0].Results {
		f.Add(AppendResult(nil, &sampleState().Sessions[0].Results[i]))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeResult(b)
		if err != nil {
			return
		}
		for i := range r.Statements {
			for _, rows := range r.Statements[i].Sets() {
				if rows.Len()*len(rows.Columns) != len(rows.Cells) {
					t.Fatalf("%d cells in rows of %d", len(rows.Cells), len(rows.Columns))
				}
			}
		}
		AppendResult(nil, r)
	})
}

// allocated returns the bytes that f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// Decoding a few bytes must not allocate gigabytes.
func TestDecodingIsBounded(t *testing.T) {
	compress := func(body []byte) []byte {
		z, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		return z.EncodeAll(body, []byte{FormatVersion, flagZstd})
	}
	// message returns field n with this content.
	message := func(n byte, content []byte) []byte {
		return append(binary.AppendUvarint([]byte{n<<3 | 2}, uint64(len(content))), content...)
	}
	empties := func(n byte, count int) []byte { return bytes.Repeat([]byte{n<<3 | 2, 0}, count) }
	frame := func(body []byte) []byte { return append([]byte{FormatVersion, 0}, body...) }
	text := message(5, []byte("SELECT 1"))
	bomb := compress(make([]byte, 1<<30))
	for name, test := range map[string]struct {
		cmd  []byte
		fail bool
	}{
		"a gigabyte of zeros":            {bomb, true},
		"two bombs, one after the other": {append(compress(make([]byte, 20<<20)), bomb[2:]...), true},
		"a frame that claims to be huge": {[]byte{FormatVersion, flagZstd, 0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0xff, 0, 0, 1, 0, 0}, true},
		"a length beyond the end":        {frame([]byte{6<<3 | 2, 0xff, 0xff, 0xff, 0xff, 0x0f}), true},
		"many operations":                {frame(empties(6, 1<<20)), false},
		"many texts":                     {frame(empties(5, 1<<20)), false},
		"many commands":                  {frame(empties(8, 1<<20)), false},
		"many ids":                       {frame(message(8, bytes.Repeat([]byte{11 << 3, 1}, 1<<20))), false},
		"many statements":                {frame(append(bytes.Clone(text), message(6, empties(9, 1<<20))...)), false},
		"many arguments":                 {frame(append(bytes.Clone(text), message(6, message(9, empties(2, 1<<20)))...)), false},
		"deep groups":                    {frame(bytes.Repeat([]byte{7<<3 | 3}, 1<<20)), true},
	} {
		var d Decoder
		var err error
		n := allocated(func() { _, err = d.Decode(test.cmd) })
		if (err != nil) != test.fail {
			t.Errorf("%s: %v", name, err)
		}
		if limit := uint64(4*maxDecodedSize + 440*len(test.cmd)); n > limit || n > 1<<30 {
			t.Errorf("%s: decoding %d bytes allocates %d MB", name, len(test.cmd), n>>20)
		}
	}
	for name, b := range map[string][]byte{
		"many results":  message(4, empties(4, 1<<20)),
		"many sessions": empties(4, 1<<20),
		"many cells":    message(4, message(4, message(1, append(empties(3, 1), message(4, empties(1, 1<<20))...)))),
	} {
		if n := allocated(func() { DecodeState(b) }); n > uint64(400*len(b)) {
			t.Errorf("%s: decoding %d bytes allocates %d MB", name, len(b), n>>20)
		}
	}
	b := message(2, empties(4, 1<<20))
	if n := allocated(func() { DecodeRecord(b) }); n > uint64(400*len(b)) {
		t.Errorf("many outcomes: decoding %d bytes allocates %d MB", len(b), n>>20)
	}
}

func TestMalformedEntries(t *testing.T) {
	var d Decoder
	for name, cmd := range map[string][]byte{
		"nothing": nil, "one byte": {1}, "version 0": {0, 0}, "an unknown flag": {1, 2}, "zstd of garbage": {1, 1, 2, 3},
		"half a field": {1, 0, 8}, "a text that does not exist": {1, 0, 6<<3 | 2, 4, 9<<3 | 2, 2, 8, 1}, "field 0": {1, 0, 0, 0},
	} {
		if _, err := d.Decode(cmd); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := d.Decode([]byte{FormatVersion + 1, 0}); !errors.Is(err, ErrNewerFormat) {
		t.Error(err)
	}
	if _, err := DecodeResult([]byte{1<<3 | 2, 2, 4<<3 | 2, 0}); err == nil {
		t.Error("rows without columns")
	}
}

// A truncated entry is an error or a shorter entry. It never leads to a panic, nor to a text
// that belongs to another statement.
func TestTruncatedEntries(t *testing.T) {
	cmd := encode(12, 345, sample())
	var d Decoder
	for n := range cmd {
		if e, err := d.Decode(cmd[:n]); err == nil && len(e.Operations) >= len(sample()) {
			t.Errorf("an entry truncated to %d of %d bytes was decoded completely", n, len(cmd))
		}
	}
}
