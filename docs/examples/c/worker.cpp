// worker.cpp - worker.c in C++17: ends close by themselves, and statuses are exceptions.
#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "ringcast.h"

constexpr std::int64_t second_ns = 1'000'000'000;

struct Error : std::runtime_error {
    explicit Error(ringcast_status status)
        : std::runtime_error(ringcast_last_error()), status(status) {}
    const ringcast_status status;
};

void check(ringcast_status status)
{
    if (status != RINGCAST_OK)
        throw Error(status);
}

class Reader {
public:
    Reader(const std::string &name, const ringcast_reader_options &options)
    {
        ringcast_reader *reader;
        check(ringcast_reader_attach(&reader, name.c_str(), &options));
        reader_.reset(reader);
    }

    // The next message, which is valid until the next one is read; nothing when the ring has ended.
    std::optional<ringcast_message> read()
    {
        ringcast_message message;
        ringcast_status status = ringcast_read(reader_.get(), &message, RINGCAST_FOREVER);
        if (status == RINGCAST_ENDED)
            return std::nullopt;
        check(status);
        return message;
    }

    bool valid() const { return ringcast_valid(reader_.get()) != 0; }

private:
    struct Close {
        void operator()(ringcast_reader *reader) const { ringcast_reader_close(reader); }
    };
    std::unique_ptr<ringcast_reader, Close> reader_;
};

class Sender {
public:
    explicit Sender(const std::string &name)
    {
        ringcast_sender *sender;
        check(ringcast_sender_attach(&sender, name.c_str(), "c++ worker", 0));
        sender_.reset(sender);
    }

    void send(std::string_view text)
    {
        check(ringcast_send(sender_.get(), text.data(), text.size(), RINGCAST_TEXT, second_ns,
                            nullptr));
        check(ringcast_flush(sender_.get(), 5 * second_ns));
    }

private:
    struct Close {
        void operator()(ringcast_sender *sender) const { ringcast_sender_close(sender); }
    };
    std::unique_ptr<ringcast_sender, Close> sender_;
};

std::string_view payload(const ringcast_message &message)
{
    return {static_cast<const char *>(message.payload), message.length};
}

// Print until the ring ends (true) or the reader is evicted; `options` say where to go on then.
bool read_all(const std::string &name, ringcast_reader_options &options)
try {
    Reader reader(name, options);
    while (auto message = reader.read()) {
        std::cout << message->sequence << " (" << message->gap << " missed) " << payload(*message)
                  << '\n';
        options.start = RINGCAST_SEQUENCE; // read it again if the reader was evicted meanwhile
        options.sequence = message->sequence + (reader.valid() ? 1 : 0);
    }
    return true;
} catch (const Error &error) {
    if (error.status != RINGCAST_EVICTED)
        throw;
    std::cerr << error.what() << '\n';
    return false;
}

int main(int argc, char **argv)
try {
    ringcast_reader_options options{};
    options.label = "c++ worker";
    if (argc < 2)
        throw std::invalid_argument("usage: worker NAME [TEXT]");
    if (argc > 2)
        Sender(argv[1]).send(argv[2]);
    while (!read_all(argv[1], options))
        ;
} catch (const std::exception &error) {
    std::cerr << error.what() << '\n';
    return 1;
}
