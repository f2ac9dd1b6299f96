package hiqlite_test

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
)

// A valve forwards connections to a node, and can hold back what comes, as a
// network does that was cut and heals: nothing is lost, all arrives at once.
type valve struct {
	to   string
	l    net.Listener
	mu   sync.Mutex
	open chan struct{} // closed while it is open; guarded by mu
	all  map[net.Conn]bool
}

func newValve(t testing.TB, address, to string) *valve {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	v := &valve{to: to, l: l, open: make(chan struct{}), all: map[net.Conn]bool{}}
	close(v.open)
	var work sync.WaitGroup
	work.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { v.forward(in) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		v.release()
		v.mu.Lock()
		for c := range v.all {
			c.Close()
		}
		v.mu.Unlock()
		work.Wait()
	})
	return v
}

func (v *valve) hold() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.open = make(chan struct{})
}

func (v *valve) release() {
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case <-v.open:
	default:
		close(v.open)
	}
}

func (v *valve) wait() {
	v.mu.Lock()
	open := v.open
	v.mu.Unlock()
	<-open
}

func (v *valve) keep(c net.Conn) (forget func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.all[c] = true
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.all, c)
		c.Close()
	}
}

func (v *valve) forward(in net.Conn) {
	defer v.keep(in)()
	v.wait()
	out, err := net.Dial("tcp", v.to)
	if err != nil {
		return
	}
	defer v.keep(out)()
	var back sync.WaitGroup
	back.Go(func() { v.copy(in, out) })
	v.copy(out, in)
	out.Close()
	in.Close()
	back.Wait()
}

func (v *valve) copy(to, from net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		v.wait()
		n, err := from.Read(buf)
		v.wait()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	to.Close()
	from.Close()
}

// memory returns the most resident memory, in bytes, that a process ever had.
func (p *process) memory() int64 {
	p.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(data), "VmHWM:")
	kib, err := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return kib << 10
}

// A follower is cut off while the leader takes 1 MB/s, and comes back: it
// answers all heartbeats that were held up at once. The leader does not send it
// all that it lacks for each of them.
func TestLeadersMemoryIsBoundedWhenAFollowerReturns(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	const rate, cut, bound = 1 << 20, 15 * time.Second, 220 << 20
	valves := make([]*valve, 3)
	own := freePorts(t, 3)
	for i, address := range freePorts(t, 3) {
		valves[i] = newValve(t, address, own[i])
	}
	all := processes(t, 3, 1, func(cfg *hiqlite.Config) {
		nodes := make([]hiqlite.Member, 3)
		for i := range nodes {
			nodes[i] = hiqlite.Member{ID: uint64(i + 1), RaftAddr: valves[i].l.Addr().String()}
		}
		nodes[cfg.NodeID-1].RaftAddr = own[cfg.NodeID-1]
		cfg.Nodes = nodes
	})
	all[0].ask("table")
	leader := leads(t, all)
	follower := all[leader.cfg.NodeID%3]
	before := leader.memory()
	leader.ask(fmt.Sprint("load ", rate))
	valves[follower.cfg.NodeID-1].hold()
	time.Sleep(cut) // what the test is about: writes go on meanwhile
	valves[follower.cfg.NodeID-1].release()
	follower.ask("ready")
	leader.ask("stop")
	follower.ask("ready")
	after := leader.memory()
	t.Logf("the leader had %d MiB before, and %d MiB at most", before>>20, after>>20)
	if after > bound {
		t.Errorf("the leader took up to %d MiB, more than %d", after>>20, bound>>20)
	}
	if h := leader.ask("hash").Hash; follower.ask("hash").Hash != h {
		t.Error("the follower holds something else")
	}
}
