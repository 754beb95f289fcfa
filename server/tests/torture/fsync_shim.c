/* LD_PRELOAD: after each real fsync or fdatasync, notes which file is safe up to which length.
   One line per sync, "<inode> <bytes>", appended to the file that NBPULSE_FSYNC_NOTES names. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int sync_and_note(int fd, long number)
{
    struct stat before;
    int is_known = fstat(fd, &before) == 0;
    int result = (int)syscall(number, fd);
    const char *notes = getenv("NBPULSE_FSYNC_NOTES");
    if (result == 0 && is_known && notes != NULL) {
        char line[64];
        int length = snprintf(line, sizeof line, "%lu %ld\n", (unsigned long)before.st_ino, (long)before.st_size);
        int file = open(notes, O_WRONLY | O_APPEND | O_CLOEXEC);
        if (file < 0 || write(file, line, (size_t)length) != length)
            abort(); /* an unnoted sync would make the cut harsher than a real one */
        close(file);
    }
    return result;
}

int fsync(int fd) { return sync_and_note(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_and_note(fd, SYS_fdatasync); }
