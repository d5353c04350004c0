#include "fuzz_model.h"

static bool stop_model(model *m, scan_status status, uint64_t at) {
  m->r.status = status, m->r.at = at;
  return false;
}

static bool lower_is(const sample_name *n, const char *text, size_t len) {
  if (n->ext_len != len) return false;
  for (size_t i = 0; i < len; i++) {
    char a = n->ext[i], b = text[i];
    if ((a >= 'A' && a <= 'Z' ? a | 32 : a) != (b >= 'A' && b <= 'Z' ? b | 32 : b)) return false;
  }
  return true;
}

static bool model_add(model *m, const tar_member *member) {
  sample_name n;
  if (member->type != TAR_FILE && member->type != TAR_SPARSE) return true;
  if (!sample_split(member->name, member->name_len, &n)) return true;
  if (member->type == TAR_SPARSE) return stop_model(m, SCAN_SPARSE, member->header);
  model_row *last = m->nrows ? &m->rows[m->nrows - 1] : NULL;
  if (!last || !same_text(last->name.key, last->name.key_len, n.key, n.key_len)) {
    for (size_t i = 0; i < m->nrows; i++)
      if (same_text(m->rows[i].name.key, m->rows[i].name.key_len, n.key, n.key_len))
        return stop_model(m, SCAN_INTERLEAVED, member->header);
    last = &m->rows[m->nrows++];
    *last = (model_row){m->nentries, 0, n};
  }
  if (lower_is(&n, "__key__", 7) || lower_is(&n, "__url__", 7) || lower_is(&n, "__local_path__", 14))
    return stop_model(m, SCAN_DUPLICATE, member->header);
  for (size_t i = last->first; i < m->nentries; i++)
    if (lower_is(&m->names[i], n.ext, n.ext_len)) return stop_model(m, SCAN_DUPLICATE, member->header);
  m->names[m->nentries] = n, m->entries[m->nentries++] = member;
  last->fields++;
  return true;
}

void model_scan(model *m, const whole_walk *t, bool sized) {
  size_t most = t->count + 1;
  *m = (model){.rows = must(calloc(most, sizeof *m->rows)),
               .entries = must(calloc(most, sizeof *m->entries)),
               .names = must(calloc(most, sizeof *m->names))};
  for (size_t i = 0; i < t->count; i++) {
    const seen_member *s = &t->members[i];
    if (s->late && sized) stop_model(m, SCAN_TRUNCATED, t->len);
    if (m->r.status || !model_add(m, &s->m)) return;
    m->nmembers++;
    if (s->late) stop_model(m, SCAN_TRUNCATED, t->len);
  }
  if (m->r.status || t->end == TAR_MEMBER) return;
  if (t->end == TAR_ERROR) stop_model(m, SCAN_HEADER, t->at), m->r.reason = t->reason;
  if (t->end == TAR_MORE) stop_model(m, SCAN_TRUNCATED, t->len);
  if (t->end != TAR_END) return;
  size_t at = (size_t)t->pos;
  while (at < t->len && !t->data[at]) at++;
  if (at < t->len) stop_model(m, SCAN_TRAILING, at);
}

static uint64_t u64_at(const bytes_vec *v, size_t i) {
  uint64_t value;
  CHECK(v->len / 8 > i);
  memcpy(&value, v->data + 8 * i, 8);
  return value;
}

void model_compare(const model *m, const columns *c, const scan_result *r) {
  CHECK(r->status == m->r.status);
  if (r->status) CHECK(r->at == m->r.at && r->reason);
  if (r->status == SCAN_HEADER) CHECK(r->reason == m->r.reason);
  if (r->status) return; /* the columns are thrown away */
  CHECK(c->nsamples == m->nrows && c->nfields == m->nentries && c->nmembers == m->nmembers);
  CHECK(c->field_codes.len == m->nentries * 4 && c->field_nbytes.len == m->nentries * 8 && c->ends.len == m->nrows * 8);
  for (size_t i = 0, key = 0; i < m->nrows; key = (size_t)u64_at(&c->key_ends, i++)) {
    const model_row *row = &m->rows[i];
    const char *text = (char *)c->keys.data + key;
    CHECK(same_text(text, (size_t)u64_at(&c->key_ends, i) - key, row->name.key, row->name.key_len));
    CHECK(u64_at(&c->hashes, i) == sample_hash(row->name.key, row->name.key_len, 0));
    CHECK(u64_at(&c->field_ends, i) == row->first + row->fields);
    CHECK(u64_at(&c->starts, i) == m->entries[row->first]->start);
    CHECK(u64_at(&c->ends, i) == m->entries[row->first + row->fields - 1]->next);
  }
  for (size_t i = 0; i < m->nentries; i++) {
    uint32_t code;
    memcpy(&code, c->field_codes.data + 4 * i, 4);
    size_t from = code ? (size_t)u64_at(&c->ext_ends, code - 1) : 0;
    CHECK(lower_is(&m->names[i], (char *)c->exts.data + from, (size_t)u64_at(&c->ext_ends, code) - from));
    CHECK(u64_at(&c->field_headers, i) == m->entries[i]->header);
    CHECK(u64_at(&c->field_offsets, i) == m->entries[i]->offset);
    CHECK(u64_at(&c->field_nbytes, i) == m->entries[i]->nbytes);
  }
}

void model_free(model *m) {
  free(m->rows);
  free((void *)m->entries);
  free(m->names);
}
