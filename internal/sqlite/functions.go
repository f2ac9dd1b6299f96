package sqlite

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// A Function is an SQL function that the program defines.
type Function struct {
	Name string
	// Args is the number of arguments, or -1 for any number.
	Args int
	// Version is the version of what the function computes. Replicas that execute a
	// write must have the same version of each function that the write uses.
	Version uint64
	// Deterministic says that the function always returns the same for the same
	// arguments, on every node. Writes may use only such functions.
	Deterministic bool

	// Scalar is set for a scalar function, Aggregate for an aggregate.
	Scalar    func(args []wire.Value) (wire.Value, error)
	Aggregate func() Aggregate
	// Window says that Aggregate returns WindowAggregates.
	Window bool
}

// An Aggregate collects the rows of one group.
type Aggregate interface {
	Step(args []wire.Value) error
	Final() (wire.Value, error)
}

// A WindowAggregate can also return a value after each row (Value), and remove the oldest
// row from the group (Inverse).
type WindowAggregate interface {
	Aggregate
	Inverse(args []wire.Value) error
	Value() (wire.Value, error)
}

// A Collation is an order of texts that the program defines. It has to be deterministic.
type Collation struct {
	Name    string
	Version uint64
	Compare func(a, b string) int
}

// Functions are the functions and collations that a program defines. A nil *Functions has
// none.
type Functions struct {
	functions  []Function
	collations []Collation
	inWrites   []wire.Function // the functions and collations that writes may use
	readsOnly  map[string]bool // the names of functions that writes must not use
}

// NewFunctions checks functions and collations. The error reports all faults.
func NewFunctions(functions []Function, collations []Collation) (*Functions, error) {
	f := &Functions{functions: functions, collations: collations, readsOnly: map[string]bool{}}
	builtIn, err := builtInNames()
	if err != nil {
		return nil, err
	}
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	versions := map[string]Function{}
	for i := range functions {
		fn := &functions[i]
		name := lower(fn.Name)
		first, known := versions[name]
		switch {
		case name == "" || len(name) > 255 || strings.ContainsRune(name, 0):
			fault("the function name %q is not 1 to 255 bytes without NUL", fn.Name)
		case builtIn[name]:
			fault("the function %s is one of SQLite's: choose another name, because a node without yours would call SQLite's", fn.Name)
		case (fn.Scalar == nil) == (fn.Aggregate == nil):
			fault("the function %s must be either a scalar function or an aggregate", fn.Name)
		case fn.Args < -1 || fn.Args > 127:
			fault("the function %s takes %d arguments: -1 (any) to 127 are possible", fn.Name, fn.Args)
		case known && (first.Version != fn.Version || first.Deterministic != fn.Deterministic):
			fault("the function %s is given twice, with different Version or Deterministic", fn.Name)
		}
		if !known && fn.Deterministic {
			f.inWrites = append(f.inWrites, wire.Function{Name: name, Version: fn.Version})
		}
		if !fn.Deterministic {
			f.readsOnly[name] = true
		}
		versions[name] = *fn
	}
	orders := map[string]bool{"binary": true, "nocase": true, "rtrim": true}
	for i := range collations {
		c := &collations[i]
		name := lower(c.Name)
		switch {
		case name == "" || len(name) > 255 || strings.ContainsRune(name, 0):
			fault("the collation name %q is not 1 to 255 bytes without NUL", c.Name)
		case orders[name]:
			fault("the collation %s is given twice, or is one of SQLite's: choose another name", c.Name)
		case c.Compare == nil:
			fault("the collation %s has no Compare", c.Name)
		}
		orders[name] = true
		f.inWrites = append(f.inWrites, wire.Function{Name: name, Version: c.Version, Collation: true})
	}
	slices.SortFunc(f.inWrites, wire.Function.Compare)
	return f, errors.Join(faults...)
}

// Used returns the functions and collations that the texts may use: those whose names
// occur anywhere in them. If it returns one that is not used, other nodes must
// nevertheless have it.
func (f *Functions) Used(texts ...string) (used []wire.Function) {
	if f == nil || len(f.inWrites) == 0 {
		return nil
	}
	missing := slices.Clone(f.inWrites)
	for i, text := range texts {
		if i > 0 && text == texts[i-1] {
			continue
		}
		text = lower(text)
		missing = slices.DeleteFunc(missing, func(u wire.Function) bool {
			if !strings.Contains(text, u.Name) {
				return false
			}
			used = append(used, u)
			return true
		})
	}
	slices.SortFunc(used, wire.Function.Compare)
	return used
}

// Missing returns the first of the wanted functions that this program does not define, or
// defines with another version.
func (f *Functions) Missing(wanted []wire.Function) (wire.Function, bool) {
	for _, w := range wanted {
		if f == nil || !slices.Contains(f.inWrites, w) {
			return w, true
		}
	}
	return wire.Function{}, false
}

// Mentioned returns those of the functions whose names occur in the texts.
func Mentioned(functions []wire.Function, texts []string) (found []wire.Function) {
	for _, f := range functions {
		if slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(lower(text), f.Name) }) {
			found = append(found, f)
		}
	}
	return found
}

// lower returns text with A to Z in lower case, and all other bytes as they are. SQLite
// compares names and keywords in this way.
func lower(text string) string { return switchCase(text, 'A', 'Z') }

// upper returns text with a to z in upper case, and all other bytes as they are.
func upper(text string) string { return switchCase(text, 'a', 'z') }

func switchCase(text string, first, last byte) string {
	var out []byte // nil: nothing has changed yet
	for i := range len(text) {
		if c := text[i]; first <= c && c <= last {
			if out == nil {
				out = []byte(text)
			}
			out[i] = c ^ ('a' - 'A')
		}
	}
	if out == nil {
		return text
	}
	return string(out)
}

// builtInNames returns the names of SQLite's functions, and of hiqlite's.
var builtInNames = sync.OnceValues(func() (map[string]bool, error) {
	c, err := Open(":memory:", Plain)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	list, err := c.TextsAsOwner("SELECT lower(name) FROM pragma_function_list")
	names := map[string]bool{}
	for _, name := range list {
		names[name] = true
	}
	return names, err
})

// Define registers the functions and collations on the connection. On an Apply connection
// it registers only deterministic ones.
func (c *Conn) Define(f *Functions) error {
	if f == nil {
		return nil
	}
	c.functions = f
	for i := range f.functions {
		fn := &f.functions[i]
		if c.mode == Apply && !fn.Deterministic {
			continue
		}
		if err := c.defineFunction(fn); err != nil {
			return err
		}
	}
	for i := range f.collations {
		name := c.cstring(f.collations[i].Name)
		rc := lib.Xsqlite3_create_collation_v2(c.tls, c.db, name, lib.SQLITE_UTF8, handleOf(&f.collations[i]), callback(collate), 0)
		libc.Xfree(c.tls, name)
		if rc != lib.SQLITE_OK {
			return c.err(rc)
		}
	}
	return nil
}

func (c *Conn) defineFunction(fn *Function) error {
	flags := int32(lib.SQLITE_UTF8)
	if fn.Deterministic {
		flags |= lib.SQLITE_DETERMINISTIC
	}
	name, id := c.cstring(fn.Name), handleOf(fn)
	defer libc.Xfree(c.tls, name)
	var rc int32
	switch {
	case fn.Scalar != nil:
		rc = lib.Xsqlite3_create_function_v2(c.tls, c.db, name, int32(fn.Args), flags, id, callback(scalarFunction), 0, 0, 0)
	case fn.Window:
		rc = lib.Xsqlite3_create_window_function(c.tls, c.db, name, int32(fn.Args), flags, id, callback(aggregateStep), callback(aggregateFinal), callback(aggregateValue), callback(aggregateInverse), 0)
	default:
		rc = lib.Xsqlite3_create_function_v2(c.tls, c.db, name, int32(fn.Args), flags, id, 0, callback(aggregateStep), callback(aggregateFinal), 0)
	}
	if rc != lib.SQLITE_OK {
		return c.err(rc)
	}
	return nil
}

// handles are numbers for functions and collations, because the engine's memory cannot
// hold Go pointers. There are as many as the program has functions and collations, so
// they are never freed.
var handles struct {
	mu    sync.RWMutex
	all   []any
	byPtr map[any]uintptr
}

func handleOf(p any) uintptr {
	handles.mu.Lock()
	defer handles.mu.Unlock()
	if id, ok := handles.byPtr[p]; ok {
		return id
	}
	if handles.byPtr == nil {
		handles.byPtr = map[any]uintptr{}
	}
	handles.all = append(handles.all, p)
	id := uintptr(len(handles.all))
	handles.byPtr[p] = id
	return id
}

func byHandle(id uintptr) any {
	handles.mu.RLock()
	defer handles.mu.RUnlock()
	return handles.all[id-1]
}

func functionOf(tls *libc.TLS, ctx uintptr) *Function {
	return byHandle(lib.Xsqlite3_user_data(tls, ctx)).(*Function)
}

func scalarFunction(tls *libc.TLS, ctx uintptr, argc int32, argv uintptr) {
	fn := functionOf(tls, ctx)
	setResult(tls, ctx, fn.Name, func() (wire.Value, error) { return fn.Scalar(arguments(tls, argc, argv)) })
}

// groups are the aggregates that are collecting rows, by number. The engine keeps the
// number in the aggregate context of the group.
var groups struct {
	mu   sync.Mutex
	last uint64
	byID map[uint64]Aggregate
}

// currentGroup returns the aggregate of the current group, and where its number is. With the
// first row of a group it makes a new aggregate. It returns nil if SQLite has no memory
// for the number.
func currentGroup(tls *libc.TLS, ctx uintptr, fn *Function) (a Aggregate, slot *uint64) {
	p := lib.Xsqlite3_aggregate_context(tls, ctx, 8)
	if p == 0 {
		return nil, nil
	}
	slot = at[uint64](p)
	groups.mu.Lock()
	a = groups.byID[*slot]
	groups.mu.Unlock()
	if a != nil {
		return a, slot
	}
	a = fn.Aggregate()
	groups.mu.Lock()
	defer groups.mu.Unlock()
	if groups.byID == nil {
		groups.byID = map[uint64]Aggregate{}
	}
	groups.last++
	*slot = groups.last
	groups.byID[*slot] = a
	return a, slot
}

func aggregateStep(tls *libc.TLS, ctx uintptr, argc int32, argv uintptr) {
	fn := functionOf(tls, ctx)
	reportError(tls, ctx, fn.Name, func() error {
		a, _ := currentGroup(tls, ctx, fn)
		if a == nil {
			return errNoMemory
		}
		return a.Step(arguments(tls, argc, argv))
	})
}

func aggregateInverse(tls *libc.TLS, ctx uintptr, argc int32, argv uintptr) {
	fn := functionOf(tls, ctx)
	reportError(tls, ctx, fn.Name, func() error {
		a, _ := currentGroup(tls, ctx, fn)
		if a == nil {
			return errNoMemory
		}
		return a.(WindowAggregate).Inverse(arguments(tls, argc, argv))
	})
}

func aggregateValue(tls *libc.TLS, ctx uintptr) {
	fn := functionOf(tls, ctx)
	setResult(tls, ctx, fn.Name, func() (wire.Value, error) {
		a, _ := currentGroup(tls, ctx, fn)
		if a == nil {
			return wire.Value{}, errNoMemory
		}
		return a.(WindowAggregate).Value()
	})
}

// aggregateFinal is called once for each group, also if the statement failed.
func aggregateFinal(tls *libc.TLS, ctx uintptr) {
	fn := functionOf(tls, ctx)
	setResult(tls, ctx, fn.Name, func() (wire.Value, error) {
		a, slot := currentGroup(tls, ctx, fn)
		if a == nil {
			return wire.Value{}, errNoMemory
		}
		groups.mu.Lock()
		delete(groups.byID, *slot)
		groups.mu.Unlock()
		*slot = 0
		return a.Final()
	})
}

var errNoMemory = errors.New("out of memory")

// setResult calls f and passes its value or error to SQLite, as the result of the call of
// the function name.
func setResult(tls *libc.TLS, ctx uintptr, name string, f func() (wire.Value, error)) {
	var v wire.Value
	reportError(tls, ctx, name, func() (err error) {
		v, err = f()
		return err
	})
	switch v.Kind {
	case wire.Integer:
		lib.Xsqlite3_result_int64(tls, ctx, v.Int())
	case wire.Real:
		lib.Xsqlite3_result_double(tls, ctx, v.Float())
	case wire.Text, wire.Blob:
		if len(v.Data) > maxLength {
			lib.Xsqlite3_result_error_toobig(tls, ctx)
			return
		}
		p := libc.Xmalloc(tls, libc.Tsize_t(len(v.Data)+1))
		copy(unsafe.Slice(at[byte](p), len(v.Data)+1), v.Data)
		if v.Kind == wire.Text {
			lib.Xsqlite3_result_text(tls, ctx, p, int32(len(v.Data)), ^uintptr(0)) // SQLITE_TRANSIENT: copied at once
		} else {
			lib.Xsqlite3_result_blob64(tls, ctx, p, uint64(len(v.Data)), ^uintptr(0))
		}
		libc.Xfree(tls, p)
	}
}

// reportError calls f and passes its error or panic to SQLite, as the error of the call of
// the function name.
func reportError(tls *libc.TLS, ctx uintptr, name string, f func() error) {
	err := func() (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("the function %s panicked: %v", name, r)
			}
		}()
		return f()
	}()
	if err == nil {
		return
	}
	message := strings.ReplaceAll(err.Error(), "\x00", " ")
	p := libc.Xmalloc(tls, libc.Tsize_t(len(message)+1))
	copy(unsafe.Slice(at[byte](p), len(message)), message)
	lib.Xsqlite3_result_error(tls, ctx, p, int32(len(message))) // SQLite copies it
	libc.Xfree(tls, p)
}

// arguments copies the arguments of a call.
func arguments(tls *libc.TLS, argc int32, argv uintptr) []wire.Value {
	args := make([]wire.Value, argc)
	for i := range args {
		p := *at[uintptr](argv + uintptr(i)*unsafe.Sizeof(uintptr(0)))
		switch lib.Xsqlite3_value_type(tls, p) {
		case lib.SQLITE_INTEGER:
			args[i] = wire.IntegerValue(lib.Xsqlite3_value_int64(tls, p))
		case lib.SQLITE_FLOAT:
			args[i] = wire.RealValue(lib.Xsqlite3_value_double(tls, p))
		case lib.SQLITE_TEXT:
			args[i] = wire.Value{Kind: wire.Text, Data: bytesOf(tls, lib.Xsqlite3_value_text(tls, p), p)}
		case lib.SQLITE_BLOB:
			args[i] = wire.Value{Kind: wire.Blob, Data: bytesOf(tls, lib.Xsqlite3_value_blob(tls, p), p)}
		}
	}
	return args
}

// bytesOf copies the text or blob of a value.
func bytesOf(tls *libc.TLS, data, value uintptr) []byte {
	n := lib.Xsqlite3_value_bytes(tls, value)
	b := make([]byte, n)
	if data != 0 {
		copy(b, unsafe.Slice(at[byte](data), n))
	}
	return b
}

// collate compares two texts by a collation of the program. It copies them, because they
// are in the engine's memory.
func collate(_ *libc.TLS, id uintptr, n1 int32, p1 uintptr, n2 int32, p2 uintptr) int32 {
	c := byHandle(id).(*Collation)
	return int32(max(-1, min(1, c.Compare(copyText(p1, n1), copyText(p2, n2)))))
}

func copyText(p uintptr, n int32) string {
	if p == 0 || n == 0 {
		return ""
	}
	return string(unsafe.Slice(at[byte](p), n))
}
