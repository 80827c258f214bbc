/* The bare pre-fork loop in C: `bare once|every PROCESSES`. What the kernel's part of a connection costs. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void converse(int client, int every)
{
    char line[4096];
    size_t held = 0;
    ssize_t got;
    while ((got = read(client, line + held, sizeof line - held)) > 0) {
        held += got;
        if (!memchr(line, '\n', held))
            continue;
        if (write(client, "+PONG\r\n", 7) != 7 || !every)
            return;
        held = 0;
    }
}

static void serve(int listener, int every)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0)
            continue;
        converse(client, every);
        shutdown(client, SHUT_WR);
        close(client);
    }
}

int main(int count, char **words)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    sigset_t end;
    int number;
    if (count != 3 || bind(listener, (void *)&address, length) || listen(listener, 1024))
        return 1;
    signal(SIGPIPE, SIG_IGN);
    getsockname(listener, (void *)&address, &length);
    for (int left = atoi(words[2]); left; left--)
        if (!fork())
            serve(listener, !strcmp(words[1], "every"));
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    sigprocmask(SIG_BLOCK, &end, NULL);
    fprintf(stderr, "bare_c: ready on tcp://127.0.0.1:%d (pid %d)\n", ntohs(address.sin_port), getpid());
    sigwait(&end, &number);
    signal(SIGTERM, SIG_IGN);
    return 0;
}
