/* What native code of other packages needs to publish into a broadcast ring: the pointer in the capsule that
 * BroadcastWriter.native_publish() returns. The capsule keeps the writer's memory mapped; as with the writer itself, one
 * thread uses it.
 *
 *     const publish_t *to = PyCapsule_GetPointer(capsule, RINGBUFFER_PUBLISH);
 *     to->publish(to->ring, words);
 */
#ifndef RINGBUFFER_PUBLISH_H
#define RINGBUFFER_PUBLISH_H

#include <stdint.h>

#define RINGBUFFER_PUBLISH "ringbuffer.publish/1"

typedef struct {
    uint64_t (*publish)(void *ring, const uint64_t words[7]); /* returns the sequence */
    void *ring;
} publish_t;

#endif
