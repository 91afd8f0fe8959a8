// q-FedAvg as a plain loop (Li et al., ICLR 2020, Algorithm 2), for many rounds: see plain_loop.py.
//
//     plain_loop DEVICES q rate rounds
//
// Prints average, worst 10 %, best 10 % and variance of the devices' accuracies. 10 devices a round by rows,
// without putting back; one epoch in batches of 10; L = 1 / rate. DEVICES: training rows of each device, test
// rows of each, x of all training rows, their y, x of all test rows, their y.

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEVICES = 100, INPUTS = 60, CLASSES = 10, WIDE = 16, COHORT = 10, BATCH = 10 };
typedef float Weights[INPUTS + 1][WIDE];  // the last row is the intercept; 16 columns for the processor's sake
typedef struct { int32_t rows[DEVICES], first[DEVICES], *y; float *x; } Table;

static uint64_t state = 88172645463325252ULL;

static double uniform(void) {  // xorshift
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (state >> 11) * (1.0 / 9007199254740992.0);
}

static void scores(const float *x, Weights w, float *z) {
    memcpy(z, w[INPUTS], sizeof(float) * WIDE);
    for (int d = 0; d < INPUTS; d++)
        for (int k = 0; k < WIDE; k++) z[k] += x[d] * w[d][k];
}

static double loss_of(float *z, int y) {  // leaves the probabilities in z
    float top = z[0], sum = 0;
    for (int k = 1; k < CLASSES; k++) top = fmaxf(top, z[k]);
    for (int k = 0; k < CLASSES; k++) sum += z[k] = expf(z[k] - top);
    for (int k = 0; k < WIDE; k++) z[k] = k < CLASSES ? z[k] / sum : 0;
    return -logf(fmaxf(z[y], 1e-38f));
}

static void epoch(const Table *data, int device, Weights w, float rate, int *order) {
    int n = data->rows[device];
    const float *x = data->x + (long)data->first[device] * INPUTS;
    const int32_t *y = data->y + data->first[device];
    for (int j = 0; j < n; j++) order[j] = j;
    for (int j = n - 1; j > 0; j--) {
        int k = uniform() * (j + 1), kept = order[j];
        order[j] = order[k], order[k] = kept;
    }
    for (int s = 0; s < n; s += BATCH) {
        int m = n - s < BATCH ? n - s : BATCH;
        Weights slope = {0};
        for (int j = s; j < s + m; j++) {
            float z[WIDE];
            const float *row = x + (long)order[j] * INPUTS;
            scores(row, w, z), loss_of(z, y[order[j]]), z[y[order[j]]] -= 1;
            for (int d = 0; d <= INPUTS; d++)
                for (int k = 0; k < WIDE; k++) slope[d][k] += (d < INPUTS ? row[d] : 1) * z[k];
        }
        for (int d = 0; d <= INPUTS; d++)
            for (int k = 0; k < WIDE; k++) w[d][k] -= rate / m * slope[d][k];
    }
}

static void cohort(const Table *data, int *chosen) {  // the smallest exponential draws with rate n
    double draws[DEVICES];
    for (int i = 0; i < DEVICES; i++) draws[i] = -log(uniform() + 1e-300) / data->rows[i];
    for (int c = 0; c < COHORT; c++) {
        int best = 0;
        for (int i = 1; i < DEVICES; i++) best = draws[i] < draws[best] ? i : best;
        chosen[c] = best, draws[best] = INFINITY;
    }
}

static void step(const Table *data, Weights x, double q, float rate, int *order) {
    static Weights y, sum;
    double total = 0;
    int chosen[COHORT];
    cohort(data, chosen);
    memset(sum, 0, sizeof sum);
    for (int c = 0; c < COHORT; c++) {
        int device = chosen[c], n = data->rows[device], first = data->first[device];
        double loss = 1e-10, squares = 0;
        for (int j = first; j < first + n; j++) {
            float z[WIDE];
            scores(data->x + (long)j * INPUTS, x, z), loss += loss_of(z, data->y[j]) / n;
        }
        memcpy(y, x, sizeof y), epoch(data, device, y, rate, order);
        for (int d = 0; d <= INPUTS; d++)
            for (int k = 0; k < CLASSES; k++) {
                double moved = y[d][k] - x[d][k];
                squares += moved * moved, sum[d][k] += pow(loss, q) * moved;
            }
        total += pow(loss, q) + q * pow(loss, q - 1) * squares / rate;  // h / L
    }
    for (int d = 0; d <= INPUTS; d++)
        for (int k = 0; k < CLASSES; k++) x[d][k] += sum[d][k] / total;
}

static int by_size(const void *a, const void *b) {
    return (*(double *)a > *(double *)b) - (*(double *)a < *(double *)b);
}

static void tell(const Table *test, Weights w) {
    double found[DEVICES], mean = 0, variance = 0, worst = 0, best = 0;
    for (int i = 0; i < DEVICES; i++) {
        int right = 0;
        for (int j = test->first[i]; j < test->first[i] + test->rows[i]; j++) {
            float z[WIDE];
            int top = 0;
            scores(test->x + (long)j * INPUTS, w, z);
            for (int k = 1; k < CLASSES; k++) top = z[k] > z[top] ? k : top;
            right += top == test->y[j];
        }
        mean += (found[i] = 100.0 * right / test->rows[i]) / DEVICES;
    }
    qsort(found, DEVICES, sizeof(double), by_size);
    for (int i = 0; i < DEVICES; i++) variance += (found[i] - mean) * (found[i] - mean) / DEVICES;
    for (int i = 0; i < 10; i++) worst += found[i] / 10, best += found[DEVICES - 1 - i] / 10;
    printf("%.2f %.2f %.2f %.1f\n", mean, worst, best, variance);
}

static long read_rows(Table *table, FILE *file) {
    long total = 0;
    if (fread(table->rows, 4, DEVICES, file) != DEVICES) exit(2);
    for (int i = 0; i < DEVICES; i++) table->first[i] = total, total += table->rows[i];
    return total;
}

static void read_table(Table *table, long total, FILE *file) {
    table->x = malloc(total * INPUTS * 4), table->y = malloc(total * 4);
    if (fread(table->x, INPUTS * 4, total, file) != (size_t)total) exit(2);
    if (fread(table->y, 4, total, file) != (size_t)total) exit(2);
}

int main(int count, char **words) {
    static Table train, test;
    static Weights x;
    FILE *file = count == 5 ? fopen(words[1], "rb") : NULL;
    if (!file) return fprintf(stderr, "plain_loop DEVICES q rate rounds\n"), 2;
    long of_train = read_rows(&train, file), of_test = read_rows(&test, file);
    read_table(&train, of_train, file), read_table(&test, of_test, file);
    int *order = malloc(of_train * 4);
    for (int round = 0; round < atoi(words[4]); round++) step(&train, x, atof(words[2]), atof(words[3]), order);
    tell(&test, x);
    return 0;
}
