/* Adds up whole numbers, one on each line of the request's body (RFC 3875). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int answer(const char *status, const char *fields)
{
    return printf("Status: %s\nContent-Type: text/plain\n%s\n", status, fields);
}

/* Reads a line of the `left` bytes of the body; 0 at its end, -1 if the line is too long. */
static int read_line(char *line, size_t size, unsigned long long *left)
{
    size_t used = 0;
    int c = EOF;

    while (*left > 0 && (c = getchar()) != EOF) {
        --*left;
        if (c == '\n')
            break;
        if (used + 1 >= size)
            return -1;
        line[used++] = (char)c;
    }
    line[used] = '\0';
    return used > 0 || c == '\n';
}

int main(void)
{
    const char *method = getenv("REQUEST_METHOD");
    const char *length = getenv("CONTENT_LENGTH");
    unsigned long long left = length ? strtoull(length, NULL, 10) : 0;
    unsigned long long lines = 0;
    long long sum = 0;
    char line[32];
    int state;

    if (!method || strcmp(method, "POST") != 0) {
        answer("405 Method Not Allowed", "Allow: POST\n");
        puts("POST numbers, one on each line.");
        return 0;
    }
    while ((state = read_line(line, sizeof line, &left)) != 0) {
        char *end = line;
        long long number = 0;

        lines++;
        errno = 0;
        if (state > 0)
            number = strtoll(line, &end, 10);
        if (state < 0 || end == line || *end != '\0' || errno == ERANGE
            || (number > 0 && sum > 9223372036854775807LL - number)
            || (number < 0 && sum < -9223372036854775807LL - number)) {
            answer("422 Unprocessable Content", "");
            printf("Line %llu is not a number, or too large a one.\n", lines);
            return 0;
        }
        sum += number;
    }
    answer("200 OK", "");
    printf("%lld in %llu lines\n", sum, lines);
    return 0;
}
