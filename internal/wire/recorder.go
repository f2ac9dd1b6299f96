package wire

// A Recorder collects the statements of a transaction as they run, encoded.
type Recorder struct {
	texts  []string
	byText map[string]int
	body   []byte
	size   int // bytes of texts
	count  int
}

// A Mark is a position in a recording, to which Truncate can return.
type Mark struct{ texts, body, size, count int }

// Mark returns the position after the last statement.
func (r *Recorder) Mark() Mark { return Mark{len(r.texts), len(r.body), r.size, r.count} }

// Truncate removes the statements that were added since m.
func (r *Recorder) Truncate(m Mark) {
	for _, text := range r.texts[m.texts:] {
		delete(r.byText, text)
	}
	r.texts, r.body, r.size, r.count = r.texts[:m.texts], r.body[:m.body], m.size, m.count
}

// Add adds a statement. It copies the arguments, but not the text.
func (r *Recorder) Add(s *Statement) {
	n, ok := r.byText[s.SQL]
	if !ok {
		if r.byText == nil {
			r.byText = map[string]int{}
		}
		n = len(r.texts)
		r.byText[s.SQL] = n
		r.texts = append(r.texts, s.SQL)
		r.size += len(s.SQL) + 4
	}
	r.body = appendStatement(r.body, s, n)
	r.count++
}

// Len returns the number of statements.
func (r *Recorder) Len() int { return r.count }

// maxHead is an upper bound for the fields of an operation without its statements, in
// bytes.
const maxHead = 192

// Size returns about how many bytes the statements need in an entry.
func (r *Recorder) Size() int { return len(r.body) + r.size + maxHead }

// Texts returns the statements' texts, each once.
func (r *Recorder) Texts() []string { return r.texts }

// Encode returns an operation with the statements. The other fields are those of op.
func (r *Recorder) Encode(op *Operation) *EncodedOperation {
	return &EncodedOperation{Texts: r.texts, Body: append(appendHead(make([]byte, 0, len(r.body)+maxHead), op), r.body...)}
}
