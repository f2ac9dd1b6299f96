package transport

import (
	"io"
	"net"
	"sync"
	"testing"
)

// A proxy stands between two nodes. While it is held, it accepts connections and
// bytes, and passes nothing on, like a network that drops packets.
type proxy struct {
	address string
	target  string
	l       net.Listener
	work    sync.WaitGroup

	mu    sync.Mutex
	held  bool
	freed chan struct{} // closed when it is not held any more
	conns map[net.Conn]bool
	ended bool
}

func newProxy(t testing.TB, target string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: l.Addr().String(), target: target, l: l, freed: make(chan struct{}), conns: map[net.Conn]bool{}}
	close(p.freed)
	p.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.work.Go(func() { p.carry(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.hold(false)
		p.mu.Lock()
		p.ended = true
		for c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		p.work.Wait()
	})
	return p
}

func (p *proxy) hold(held bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if held && !p.held {
		p.freed = make(chan struct{})
	} else if !held && p.held {
		close(p.freed)
	}
	p.held = held
}

func (p *proxy) wait() {
	p.mu.Lock()
	freed := p.freed
	p.mu.Unlock()
	<-freed
}

func (p *proxy) add(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = true
	if p.ended {
		c.Close()
	}
}

func (p *proxy) carry(in net.Conn) {
	p.add(in)
	defer in.Close()
	p.wait()
	out, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	p.add(out)
	defer out.Close()
	p.work.Go(func() { p.pump(in, out) })
	p.pump(out, in)
}

func (p *proxy) pump(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	for buffer := make([]byte, 32<<10); ; {
		n, err := from.Read(buffer)
		p.wait()
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err == io.EOF || err != nil {
			return
		}
	}
}
