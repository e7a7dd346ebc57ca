/* One function of its own per protocol, so that its instructions can be read in a disassembly. */
#include "_ring.h"

void list_publish_words(ring_t *ring, const uint64_t values[WORDS_PER_RECORD]) {
    publish_words(ring, values);
}
void list_publish_bytes(ring_t *ring, const char *bytes) {
    publish_bytes(ring, bytes, WORDS_PER_RECORD * sizeof(uint64_t));
}
int list_copy_record(const ring_t *ring, char *to) {
    return copy_record(ring, ring->position, to);
}
uint64_t list_spin(const ring_t *ring) {
    return spin_for_records(ring, 100);
}
void list_release(ring_t *ring, uint64_t end) {
    release_upto(ring, end);
}
void list_refresh_minimum(ring_t *ring) {
    refresh_minimum(ring);
}
void list_write_row(word_t *row, const uint64_t values[WORDS_PER_RECORD]) {
    uint64_t word = open_row(row);
    store_words(row, values);
    close_row(row, word, ROW_IN_USE);
}
row_state_t list_copy_row(const word_t *row, char *to) {
    return copy_row(row, WORDS_PER_RECORD + 1, to);
}
