package sqlite

import (
	"fmt"
	"regexp"
	"sync"
	"unsafe"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// defineRegexp defines the function regexp, with Go's package regexp. SQLite evaluates
// X REGEXP Y as regexp(Y, X), and has no such function itself. What it returns is part of
// the format of entries, because all replicas must compute the same.
func (c *Conn) defineRegexp() error {
	name := c.cstring("regexp")
	defer libc.Xfree(c.tls, name)
	flags := int32(lib.SQLITE_UTF8 | lib.SQLITE_DETERMINISTIC | lib.SQLITE_INNOCUOUS)
	if rc := lib.Xsqlite3_create_function_v2(c.tls, c.db, name, 2, flags, 0, callback(regexpFunction), 0, 0, 0); rc != lib.SQLITE_OK {
		return c.err(rc)
	}
	return nil
}

func regexpFunction(tls *libc.TLS, ctx uintptr, _ int32, argv uintptr) {
	pattern, text := *at[uintptr](argv), *at[uintptr](argv + unsafe.Sizeof(uintptr(0)))
	if lib.Xsqlite3_value_type(tls, pattern) == lib.SQLITE_NULL || lib.Xsqlite3_value_type(tls, text) == lib.SQLITE_NULL {
		return // NULL
	}
	reportError(tls, ctx, "regexp", func() error {
		re, err := patterns.compile(string(bytesOf(tls, lib.Xsqlite3_value_text(tls, pattern), pattern)))
		if err != nil {
			return fmt.Errorf("REGEXP: %w", err)
		}
		result := int32(0)
		if re.Match(bytesOf(tls, lib.Xsqlite3_value_text(tls, text), text)) {
			result = 1
		}
		lib.Xsqlite3_result_int(tls, ctx, result)
		return nil
	})
}

// maxPatterns bounds the number of cached patterns, and maxPatternBytes the length of
// each.
const (
	maxPatterns     = 256
	maxPatternBytes = 4 << 10
)

// patterns caches compiled patterns, because a statement usually matches each row against
// the same pattern.
var patterns patternCache

type patternCache struct {
	mu     sync.RWMutex
	byText map[string]*regexp.Regexp
}

func (p *patternCache) compile(pattern string) (*regexp.Regexp, error) {
	p.mu.RLock()
	found := p.byText[pattern]
	p.mu.RUnlock()
	if found != nil {
		return found, nil
	}
	re, err := regexp.Compile(pattern)
	if err != nil || len(pattern) > maxPatternBytes {
		return re, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byText == nil || len(p.byText) >= maxPatterns {
		p.byText = map[string]*regexp.Regexp{}
	}
	p.byText[pattern] = re
	return re, nil
}
